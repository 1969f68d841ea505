"""TLS at the real gateway: what a client is shown, what it must speak, and a certificate that is replaced while it runs."""

from __future__ import annotations

import shutil
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from modelway.client import Client
from registry.errors import Unavailable, UsageError
from serving.envoy.files import prepare
from support.certificates import Authority
from support.envoy_process import RunningEnvoy, backend, live
from support.polling import wait_until
from support.uds_server import UdsServer

pytestmark = pytest.mark.integration


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


@pytest.fixture
def envoy(authority: Authority) -> Iterator[RunningEnvoy]:
    pair = authority.issue()
    settings = {"tls_certificate": pair.certificate, "tls_key": pair.key, "header_timeout_s": 1.0}
    with RunningEnvoy(**settings) as running, UdsServer(running.sockets / "a.sock") as node:
        running.gateway.apply(live(backend(1, node.socket)))
        yield running


def trusting(authority: Authority, **versions: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.file)
    for name, version in versions.items():
        setattr(context, name, version)
    return context


def connected(envoy: RunningEnvoy, context: ssl.SSLContext) -> ssl.SSLSocket:
    raw = socket.create_connection(("127.0.0.1", envoy.config.port), timeout=5)
    try:
        return context.wrap_socket(raw, server_hostname="127.0.0.1")
    except BaseException:
        raw.close()
        raise


def served_name(envoy: RunningEnvoy, context: ssl.SSLContext) -> str:
    with connected(envoy, context) as secured:
        certificate = secured.getpeercert()
    assert certificate is not None
    return next(value for part in certificate["subject"] for key, value in part if key == "commonName")


def test_a_client_that_trusts_the_authority_is_answered(envoy: RunningEnvoy, authority: Authority) -> None:
    url = f"https://127.0.0.1:{envoy.config.port}"
    response = httpx.post(f"{url}/v2/models/digits/infer", json={}, verify=trusting(authority))
    assert response.status_code == 200
    with Client(url, ca_file=authority.file) as client:
        assert client.signature("digits").inputs[0].name == "input"


def test_a_client_that_does_not_is_told_so(envoy: RunningEnvoy) -> None:
    with Client(f"https://127.0.0.1:{envoy.config.port}") as client, pytest.raises(Unavailable, match="certificate verify failed"):
        client.signature("digits")


def test_plain_http_is_not_answered(envoy: RunningEnvoy) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{envoy.config.port}/v2/health/live")


@pytest.mark.parametrize(("offered", "chosen"), [(["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1"), ([], None)])
def test_the_protocol_is_chosen_by_alpn(envoy: RunningEnvoy, authority: Authority, offered: list[str], chosen: str | None) -> None:
    context = trusting(authority)
    if offered:
        context.set_alpn_protocols(offered)
    with connected(envoy, context) as secured:
        assert secured.selected_alpn_protocol() == chosen


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
def test_old_versions_of_tls_are_refused(envoy: RunningEnvoy, authority: Authority) -> None:
    old = trusting(authority, minimum_version=ssl.TLSVersion.TLSv1_1, maximum_version=ssl.TLSVersion.TLSv1_1)
    old.set_ciphers("DEFAULT:@SECLEVEL=0")  # or the client itself would not offer it
    with pytest.raises((ssl.SSLError, ConnectionError), match=r"(?i)protocol version"):
        served_name(envoy, old)
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        assert served_name(envoy, trusting(authority, minimum_version=version, maximum_version=version)) == "gateway"


def test_a_replaced_certificate_is_shown_without_a_restart(envoy: RunningEnvoy, authority: Authority) -> None:
    context = trusting(authority)
    assert served_name(envoy, context) == "gateway"
    authority.issue(name="renewed")
    wait_until(lambda: served_name(envoy, context) == "renewed", what="the renewed certificate")


def test_key_and_certificate_may_lie_apart(authority: Authority, tmp_path: Path) -> None:
    pair, key = authority.issue(), tmp_path / "private" / "server.key"
    key.parent.mkdir()
    pair.key.replace(key)
    with RunningEnvoy(tls_certificate=pair.certificate, tls_key=key) as running:
        context = trusting(authority)
        renewed = authority.issue(name="renewed")
        assert served_name(running, context) == "gateway", "the certificate alone does not fit"
        renewed.key.replace(key)
        wait_until(lambda: served_name(running, context) == "renewed", what="the renewed certificate")


def test_a_mounted_secret_is_followed_as_kubernetes_replaces_it(authority: Authority, tmp_path: Path) -> None:
    """The files are links into `..data`, itself a link to a directory; only `..data` is renamed."""
    mount = tmp_path / "mount"
    mount.mkdir()
    for round_name in ("first", "second"):
        pair = authority.issue(name=round_name)
        target = mount / f"..{round_name}"
        target.mkdir()
        shutil.copy(pair.certificate, target / "tls.crt")
        shutil.copy(pair.key, target / "tls.key")
    (mount / "..data").symlink_to("..first")
    for name in ("tls.crt", "tls.key"):
        (mount / name).symlink_to(f"..data/{name}")
    with RunningEnvoy(tls_certificate=mount / "tls.crt", tls_key=mount / "tls.key") as running:
        context = trusting(authority)
        assert served_name(running, context) == "first"
        (mount / "..new").symlink_to("..second")
        (mount / "..new").replace(mount / "..data")
        wait_until(lambda: served_name(running, context) == "second", what="the second certificate")


def test_a_pair_that_does_not_fit_leaves_the_one_before(envoy: RunningEnvoy, authority: Authority) -> None:
    context = trusting(authority)
    assert envoy.config.tls_key is not None
    other = authority.issue("other", name="other")
    other.key.replace(envoy.config.tls_key)
    wait_until(lambda: "key" in envoy.config.log.read_text().lower(), what="Envoy's word on the key")
    assert served_name(envoy, context) == "gateway"
    authority.issue(name="mended")
    wait_until(lambda: served_name(envoy, context) == "mended", what="the mended certificate")


def test_a_handshake_that_does_not_come_is_given_up(envoy: RunningEnvoy) -> None:
    with socket.create_connection(("127.0.0.1", envoy.config.port), timeout=10) as silent:
        assert silent.recv(1) == b""


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda pki, pair: pair.certificate.unlink(), r"cannot read the gateway's TLS certificate \(.*server.pem: No such file"),
        (lambda pki, pair: pair.key.unlink(), r"cannot read the gateway's TLS key \(.*server.key: No such file"),
        (lambda pki, pair: pair.certificate.write_text("x"), r"TLS certificate is not PEM"),
        (lambda pki, pair: pair.key.write_text("x"), r"TLS key cannot be used"),
        (lambda pki, pair: pair.key.chmod(0o644), r"TLS key is open to others .*chmod 600"),
        (lambda pki, pair: pki.issue("b").key.replace(pair.key), r"TLS key is not that of the certificate"),
        (lambda pki, pair: pki.issue(starts_in_days=-3, ends_in_days=-1), r"TLS certificate has expired .*\d{4}-\d\d-\d\d"),
        (lambda pki, pair: pki.issue(starts_in_days=2), r"TLS certificate is not valid yet"),
    ],
    ids=["no certificate", "no key", "no PEM", "no PEM key", "open key", "wrong key", "expired", "early"],
)
def test_what_cannot_be_used_is_said_before_anything_starts(authority: Authority, spoil, says: str) -> None:
    pair = authority.issue()
    spoil(authority, pair)
    with pytest.raises(UsageError, match=says):
        RunningEnvoy(tls_certificate=pair.certificate, tls_key=pair.key)


def test_one_file_alone_is_refused(authority: Authority) -> None:
    with pytest.raises(UsageError, match="not both"):
        RunningEnvoy(tls_certificate=authority.issue().certificate)


def test_the_key_is_in_no_file_of_the_gateway(envoy: RunningEnvoy) -> None:
    assert envoy.config.tls_key is not None
    secret = "".join(envoy.config.tls_key.read_text().splitlines()[1:-1])[:40]
    prepare(envoy.config)
    assert secret not in "".join(path.read_text() for path in envoy.home.rglob("*.json"))
