"""TLS at the gateway: the certificate's files, checked before Envoy is started, and how Envoy follows them.

Envoy reads the two files again when something is renamed in the directory of one of them (as certbot, Kubernetes and `mv`
do). A pair that does not fit together is refused, and the one before stays in use.
"""

from __future__ import annotations

import datetime
import os
import ssl
import stat
from pathlib import Path
from typing import Any

from registry.errors import UsageError
from serving.envoy.messages import typed

SECRET_NAME = "gateway"


def check_certificate(certificate: Path, key: Path, now: datetime.datetime) -> datetime.datetime:
    """Raise UsageError unless the two files are a certificate chain and its key, and valid now. Returns when it expires.

    Args:
        now: Present time in UTC.
    """
    from cryptography import x509  # noqa: PLC0415  30 ms that a gateway without TLS need not pay

    chain, _ = (_read(path, what) for path, what in ((certificate, "certificate"), (key, "key")))
    mode = key.stat().st_mode
    if mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise UsageError(f"the gateway's TLS key is open to others ({key}, mode {stat.S_IMODE(mode):04o})", f"Run: chmod 600 {key}")
    try:
        leaf = x509.load_pem_x509_certificates(chain)[0]
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise UsageError(f"the gateway's TLS key is not that of the certificate ({key}, {certificate})", "Name a pair.") from None
        raise UsageError(f"the gateway's TLS key cannot be used ({key}: {error.reason or error})", "Use PEM, without a password.") from None
    except ValueError:
        raise UsageError(f"the gateway's TLS certificate is not PEM ({certificate})", "Name a file with BEGIN CERTIFICATE.") from None
    if now > leaf.not_valid_after_utc:
        raise UsageError(f"the gateway's TLS certificate has expired ({certificate}: {leaf.not_valid_after_utc:%Y-%m-%d})", "Renew it.")
    if now < leaf.not_valid_before_utc:
        raise UsageError(
            f"the gateway's TLS certificate is not valid yet ({certificate}: from {leaf.not_valid_before_utc:%Y-%m-%d})",
            "Look at this machine's clock.",
        )
    return leaf.not_valid_after_utc


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read the gateway's TLS {what} ({path}: {error.strerror})", "Name a file that this user can read."
        ) from None


def transport_socket(secret_file: Path) -> dict[str, Any]:
    """The listener's side: TLS 1.2 and up, HTTP/2 or 1.1, the certificate as a secret from a file that Envoy follows."""
    source = {"path_config_source": {"path": str(secret_file)}, "resource_api_version": "V3"}
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": typed(
            "transport_sockets.tls.v3.DownstreamTlsContext",
            common_tls_context={
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
                "alpn_protocols": ["h2", "http/1.1"],
                "tls_certificate_sds_secret_configs": [{"name": SECRET_NAME, "sds_config": source}],
            },
        ),
    }


def secret(certificate: Path, key: Path) -> dict[str, Any]:
    """The discovery document of the certificate: names of files, never what is in them."""
    return {
        "resources": [
            {
                **typed("transport_sockets.tls.v3.Secret"),
                "name": SECRET_NAME,
                "tls_certificate": {
                    "certificate_chain": {"filename": os.fspath(certificate)},
                    "private_key": {"filename": os.fspath(key)},
                },
            }
        ]
    }
