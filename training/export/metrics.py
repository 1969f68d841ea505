"""Certificates as lines for people and as metrics of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from registry.certificate import Certificate

_PARITY = "parity"


def verdict_line(certificate: Certificate) -> str:
    """One line: passed with size and latency, or failed with the reasons."""
    if not certificate.passed:
        return f"{certificate.variant}: failed: {'; '.join(certificate.failures)}"
    latency, size = certificate.facts["latency"]["batch_1"]["p50_ms"], certificate.facts["size_bytes"]
    return f"{certificate.variant}: passed {len(certificate.checks)} checks, {size} bytes, median {latency} ms at batch 1"


def numbers(certificates: Mapping[str, Certificate]) -> dict[str, float]:
    """Every number of the certificates as metrics of the run, named `export/<variant>/...`."""
    metrics: dict[str, float] = {}
    for variant, certificate in certificates.items():
        prefix = f"export/{variant}"
        metrics[f"{prefix}/passed"] = float(certificate.passed)
        metrics |= {f"{prefix}/{check.name}": check.value for check in certificate.checks}
        metrics |= {f"{prefix}/{name}": value for name, value in _fact_numbers(certificate.facts)}
    return metrics


def _fact_numbers(facts: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name in ("size_bytes", "size_ratio", "quantized_nodes"):
        if isinstance(facts.get(name), (int, float)):
            yield name, float(facts[name])
    for batch, latency in facts.get("latency", {}).items():
        yield from ((f"latency/{batch}/{name}", float(value)) for name, value in latency.items())
    quality = facts.get("quality")
    if quality is not None:
        yield from _quality_numbers(str(quality), facts[quality])
    for output, errors in facts.get(_PARITY, {}).get("held_out", {}).items():
        yield from ((f"{_PARITY}/{output}/{name}", float(value)) for name, value in errors.items() if value is not None)


def _quality_numbers(name: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    low, high = values["interval"]
    found = {"eager": values["eager"], "variant": values["variant"], "change": values["change"], "change_low": low, "change_high": high}
    yield from ((f"{name}/{key}", float(value)) for key, value in found.items() if value is not None)
