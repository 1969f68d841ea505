"""The report of an export: one HTML file that needs nothing beside it, made of certificates and outputs.

The page loads nothing: styles and figures stand in it, and its own policy forbids the rest. Names are escaped by the template.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from registry.certificate import Certificate
from registry.names import ModelVersion
from training.data.batches import Array
from training.evaluate import quality
from training.export.certificate.latency import LATENCY_BATCH_SIZES
from training.export.certificate.parity import absolute_errors, row_chunks
from training.export.certificate.reference import Reference
from training.export.report.calibration import Reliability, reliability
from training.export.report.figures import Point, error_distributions, layer_errors, quality_against, reliability_diagram

REPORT = "report.html"
_TEMPLATE = "report.html"
_EAGER = "eager float32"

Outputs = Mapping[str, Mapping[str, Array]]


def write_report(
    path: Path,
    *,
    version: ModelVersion,
    certificates: Mapping[str, Certificate],
    chosen: str | None,
    reference: Reference,
    outputs: Outputs,
) -> None:
    """Write the report. The same values give the same bytes.

    Args:
        path: The file to write.
        certificates: Variant -> its certificate, in the order in which they are shown.
        chosen: The variant that is served if nobody says otherwise; None if none passed.
        reference: What they were held against.
        outputs: Variant -> its outputs for the held-out rows (`Measured.outputs`); a variant that gave none may be left out.
    """
    ran = {variant: answers for variant, answers in outputs.items() if answers and variant in certificates}
    calibration = _calibration(reference, ran)
    template = importlib.resources.files(__package__ or "training.export.report").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template).render(
        version=str(version),
        chosen=chosen,
        quality_name=reference.quality_name,
        eager=_number(quality(reference.task, reference.outputs[reference.first], reference.rows.target)),
        num_rows=len(reference.rows),
        origin=reference.origin,
        labelled=reference.labelled,
        inputs=[str(spec) for spec in reference.signature.inputs],
        outputs=[str(spec) for spec in reference.signature.outputs],
        sizes=LATENCY_BATCH_SIZES,
        variants=[_variant(certificate, chosen, calibration) for certificate in certificates.values()],
        source_sha256=next((certificate.source_sha256 for certificate in certificates.values()), ""),
        eager_calibration=_number(calibration[_EAGER].error) if _EAGER in calibration else None,
        figures=[{"title": title, "svg": Markup(svg)} for title, svg in _figures(certificates, chosen, reference, ran, calibration)],  # noqa: S704  # drawn here; Matplotlib escapes its texts
    )
    path.write_text(page, encoding="utf-8")


def _variant(certificate: Certificate, chosen: str | None, calibration: Mapping[str, Reliability]) -> dict[str, Any]:
    """One row of the table, and what stands behind it."""
    facts = certificate.facts
    numbers = facts.get(str(facts.get("quality")), {})
    low, high = numbers.get("interval", (None, None))
    return {
        "name": certificate.variant,
        "passed": certificate.passed,
        "chosen": certificate.variant == chosen,
        "failures": certificate.failures,
        "size": _bytes(facts.get("size_bytes")),
        "ratio": _number(facts.get("size_ratio")),
        "parity": [
            {"output": output, **{name: _number(value) for name, value in errors.items()}}
            for output, errors in facts.get("parity", {}).get("held_out", {}).items()
        ],
        "quality": _number(numbers.get("variant")),
        "change": _number(numbers.get("change")),
        "interval": None if low is None or high is None else f"{low:+.4f} to {high:+.4f}",
        "mcnemar": _number(numbers.get("mcnemar", {}).get("p_mid")),
        "latency": [facts.get("latency", {}).get(f"batch_{size}", {}) for size in LATENCY_BATCH_SIZES],
        "provider": facts.get("provider"),
        "elsewhere": facts.get("num_nodes_elsewhere"),
        "calibration": _number(calibration[certificate.variant].error) if certificate.variant in calibration else None,
        "operators": facts.get("operators", {}),
        "operators_fp32": facts.get("operators_fp32", {}),
        "libraries": facts.get("libraries", {}),
        "checks": [
            {
                "name": c.name,
                "passed": c.passed,
                "value": f"{c.value:.6g}",
                "relation": c.relation,
                "limit": f"{c.limit:.6g}",
                "detail": c.detail,
            }
            for c in certificate.checks
        ],
    }


def _figures(
    certificates: Mapping[str, Certificate],
    chosen: str | None,
    reference: Reference,
    outputs: Outputs,
    calibration: Mapping[str, Reliability],
) -> list[tuple[str, str]]:
    eager = quality(reference.task, reference.outputs[reference.first], reference.rows.target)
    name = reference.quality_name
    figures = []
    for title, axis, cost, unit in (
        (f"{name} against latency", "median of one row, ms", ("latency", "batch_1", "p50_ms"), 1.0),
        (f"{name} against size", "size, kB", ("size_bytes",), 1e3),
    ):
        points = [point for certificate in certificates.values() if (point := _point(certificate, cost, unit, chosen)) is not None]
        if points and np.isfinite(eager):
            figures.append((title, quality_against(points, cost=axis, quality=name, eager=eager, budget=_budget(certificates, name))))
    errors = _relative_errors(reference, outputs)
    if errors:
        figures.append(("error by output", error_distributions(errors)))
    layers = {variant: found for variant, certificate in certificates.items() if (found := _layers(certificate))}
    if layers:
        figures.append(("error by layer", layer_errors(layers)))
    if calibration:
        figures.append(("calibration", reliability_diagram(calibration)))
    return figures


def _point(certificate: Certificate, cost: tuple[str, ...], unit: float, chosen: str | None) -> Point | None:
    value: Any = certificate.facts
    for key in cost:
        value = value.get(key, {})
    numbers = certificate.facts.get(str(certificate.facts.get("quality")), {})
    eager, variant, (low, high) = numbers.get("eager"), numbers.get("variant"), numbers.get("interval", (None, None))
    if not value or None in (eager, variant, low, high):
        return None
    return Point(
        name=certificate.variant,
        cost=float(value) / unit,
        quality=variant,
        low=eager + low,
        high=eager + high,
        passed=certificate.passed,
        chosen=certificate.variant == chosen,
    )


def _budget(certificates: Mapping[str, Certificate], name: str) -> float | None:
    limits = [check.limit for certificate in certificates.values() for check in certificate.checks if check.name == f"{name}_drop"]
    return limits[0] if limits else None


def _relative_errors(reference: Reference, outputs: Outputs) -> dict[str, dict[str, Array]]:
    errors: dict[str, dict[str, Array]] = {}
    for name, expected in reference.outputs.items():
        scale = reference.peak(name)
        if scale > 0 and outputs:
            few = next(row_chunks(expected))
            errors[name] = {
                variant: absolute_errors(answers[name][few], expected[few][: len(answers[name])]) / scale
                for variant, answers in outputs.items()
            }
    return errors


def _layers(certificate: Certificate) -> dict[str, float]:
    measured: Mapping[str, float | None] = certificate.facts.get("layer_errors", {})
    return {layer: error for layer, error in measured.items() if error is not None}


def _calibration(reference: Reference, outputs: Outputs) -> dict[str, Reliability]:
    """Of the eager model and of each variant, where there are labels to be right about."""
    if reference.task != "classification" or not reference.labelled:
        return {}
    first, target = reference.first, reference.rows.target
    answers = {_EAGER: reference.outputs[first], **{variant: given[first] for variant, given in outputs.items()}}
    found = {name: reliability(answer, target[: len(answer)]) for name, answer in answers.items()}
    return {name: value for name, value in found.items() if value is not None}


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def _bytes(value: int | None) -> str | None:
    if value is None:
        return None
    return f"{value / 1e6:.2f} MB" if value >= 1e6 else f"{value / 1e3:.1f} kB"
