"""The gates in front of the ledger, as pure functions: what may be promoted, and as which variant."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from registry.certificate import Certificate
from registry.errors import NotFound, Refused
from registry.signature import Signature, incompatibilities


def check_promotion(*, certificate: Certificate, new: Signature, live: Signature | None, allow_signature_change: bool) -> tuple[str, ...]:
    """Why a variant may not be promoted; empty if it may.

    Args:
        live: The signature of what the channel serves now; None if nothing.
    """
    reasons = [f"certificate of {certificate.variant}: {failure}" for failure in certificate.failures]
    if live is not None and not allow_signature_change:
        reasons += [f"signature: {problem}" for problem in incompatibilities(live, new)]
    return tuple(reasons)


def choose_variant(certificates: Mapping[str, Certificate], requested: str | None) -> str:
    """The requested variant; without a request the fastest one that passes, by median latency of one row.

    Raises:
        NotFound: The requested variant does not exist; names those that do.
        Refused: No variant passes; with the reasons.
    """
    if requested is not None:
        if requested not in certificates:
            raise NotFound(f"no such variant ({requested})", f"Exported are: {', '.join(sorted(certificates)) or 'none'}.")
        return requested
    chosen = fastest_passing(certificates)
    if chosen is None:
        reasons = [f"{name}: {'; '.join(certificate.failures)}" for name, certificate in sorted(certificates.items())]
        raise Refused("no variant passes its certificate", "Train or export again.", reasons=reasons)
    return chosen


def fastest_passing(certificates: Mapping[str, Certificate]) -> str | None:
    """The variant with the smallest median latency of one row among those that passed; None if none did."""
    passing = {name: _latency_ms(certificate) for name, certificate in certificates.items() if certificate.passed}
    return min(passing, key=lambda name: (passing[name], name), default=None)


def _latency_ms(certificate: Certificate) -> float:
    try:
        latency_ms = float(certificate.facts["latency"]["batch_1"]["p50_ms"])
    except (KeyError, TypeError, ValueError):
        return inf
    return latency_ms if latency_ms > 0 else inf  # NaN would win or lose by the order of the names
