"""The certificate of a variant: its files, run as they lie in the bundle, held against the eager float32 model.

Nothing here knows how a variant was made. Errors are absolute and their limits are fractions of the largest absolute
value of the output, so that one limit serves logits of any scale. A NaN in a measurement fails its check.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from registry.bundle import CERTIFICATE
from registry.certificate import Certificate, Check
from registry.names import ModelVersion
from training.data.batches import Array
from training.environment import package_versions
from training.export.certificate.baseline import Baseline
from training.export.certificate.checks import runs
from training.export.certificate.latency import latency_check, measure_latency
from training.export.certificate.layers import layer_errors
from training.export.certificate.lengths import length_checks
from training.export.certificate.parity import max_error
from training.export.certificate.placement import SaysWhereNodesRun, placement_check, placement_facts
from training.export.certificate.quality import quality_checks
from training.export.certificate.reference import Reference
from training.export.certificate.row_checks import batch_checks, first_answer, held_out, repeated_checks, row_checks
from training.export.exporter import ONNX_FILE, Inspection, Limits
from training.export.runners import VariantRunner, open_variant
from training.recipe import Target

NUM_GOLDEN = 16  # the first held-out rows
# The golden set is held to what was measured on it, with headroom for another CPU's arithmetic, within the limits.
_GOLDEN_HEADROOM = 4.0
_GOLDEN_FLOOR = 0.1
_KEPT_BYTES = 32_000_000  # of an output, for the report: all variants are held at once
_LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy", "modelway")

Tolerance = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What was measured of a variant.

    Attributes:
        certificate: The proof.
        tolerance: What the golden set may differ by: output name -> {"rtol", "atol"}.
        outputs: Its answers to the held-out rows, of large ones the first rows only; empty if it gave none of the right form.
    """

    certificate: Certificate
    tolerance: Tolerance
    outputs: Mapping[str, Array] = field(default_factory=dict)


def certify(
    directory: Path,
    *,
    version: ModelVersion,
    source_sha256: str,
    variant: str,
    reference: Reference,
    limits: Limits,
    accuracy_drop: float,
    inspection: Inspection,
    latency_p99_ms: float | None = None,
    baseline: Baseline | None = None,
    target: Target = "cpu",
) -> Measured:
    """Measure the variant that lies in a directory. Whatever the runtime raises becomes a failed check.

    Args:
        directory: Holds the variant's files and nothing else.
        source_sha256: Digest of the weights that it was made from.
        accuracy_drop: How much the held-out quality may fall, as a fraction.
        inspection: What the exporter found in the files.
        latency_p99_ms: Goal for one row at the 99th percentile; None for none.
        baseline: Size and graph of the float32 model, for comparison.
        target: The device that it must run on.
    """
    checks: list[Check] = []
    facts: dict[str, Any] = {**_file_facts(directory, baseline), **_reference_facts(reference, limits), **inspection.facts}
    if baseline is not None and baseline.operators is not None and "operators" in inspection.facts:
        facts["operators_fp32"] = dict(baseline.operators)
    outputs: Mapping[str, Array] = {}
    try:
        runner = open_variant(directory, reference.signature, target=target)
    except Exception as error:
        checks.append(runs("loads", error))
    else:
        checks.append(runs("loads"))
        outputs, measured_checks, measured_facts = _measure(
            runner, reference, limits, accuracy_drop=accuracy_drop, latency_p99_ms=latency_p99_ms
        )
        checks += measured_checks
        facts |= measured_facts
    if "quantized_nodes" in inspection.facts and baseline is not None and baseline.graph is not None:
        facts |= _layer_facts(directory / ONNX_FILE, baseline.graph, reference)
    checks += inspection.checks
    tolerance = _tolerance(reference, limits, outputs)
    facts["tolerance"] = {name: dict(values) for name, values in tolerance.items()}
    certificate = Certificate(version=version, source_sha256=source_sha256, variant=variant, checks=tuple(checks), facts=facts)
    kept = {name: array[: _num_kept(array)] for name, array in outputs.items()}
    return Measured(certificate=certificate, tolerance=tolerance, outputs=kept)


def failed_export(error: Exception, *, version: ModelVersion, source_sha256: str, variant: str, reference: Reference) -> Measured:
    """The certificate of a variant that could not be made."""
    certificate = Certificate(version=version, source_sha256=source_sha256, variant=variant, checks=(runs("export", error),))
    return Measured(certificate=certificate, tolerance={name: {"rtol": 0.0, "atol": 0.0} for name in reference.outputs})


def _measure(
    runner: VariantRunner, reference: Reference, limits: Limits, *, accuracy_drop: float, latency_p99_ms: float | None
) -> tuple[Mapping[str, Array], list[Check], dict[str, Any]]:
    first = first_answer(runner, reference)  # nothing may be asked before
    checks, facts = _where_it_runs(runner)
    batches, at_batch = batch_checks(runner, reference, limits)
    outputs, values, on_held_out = held_out(runner, reference, limits)
    checks += [*batches, *values]
    facts["parity"] = {**at_batch, "held_out": on_held_out}
    if outputs:
        kept, numbers = quality_checks(reference, outputs, accuracy_drop)
        lengths, at_length = length_checks(runner, reference, limits)
        checks += [*kept, *row_checks(runner, reference, limits), *lengths]
        facts |= numbers
        if at_length:
            facts["parity_at_length"] = at_length
        checks += _latency(runner, reference, latency_p99_ms, facts)
        checks += repeated_checks(runner, reference, limits, first)  # after all other calls
    return outputs, checks, facts


def _where_it_runs(runner: VariantRunner) -> tuple[list[Check], dict[str, Any]]:
    same = runner.provider == runner.wanted_provider
    detail = f"runs on {runner.provider}, wanted {runner.wanted_provider}"
    checks = [Check(name="provider", passed=same, value=float(same), limit=1, relation="==", detail=detail)]
    facts: dict[str, Any] = {"provider": runner.provider}
    try:
        nodes = runner.placement() if isinstance(runner, SaysWhereNodesRun) else None
    except Exception as error:
        return [*checks, runs("provider/placement", error)], facts
    if nodes is None:
        return checks, {**facts, "placement": "not told by the runtime"}
    return [*checks, placement_check(nodes, runner.wanted_provider)], {**facts, **placement_facts(nodes, runner.wanted_provider)}


def _latency(runner: VariantRunner, reference: Reference, goal_p99_ms: float | None, facts: dict[str, Any]) -> list[Check]:
    """Adds `latency` to the facts."""
    try:
        facts["latency"] = measure_latency(runner, reference.rows)
    except Exception as error:
        return [runs("latency/runs", error)]
    return [] if goal_p99_ms is None else [latency_check(facts["latency"], goal_p99_ms)]


def _layer_facts(variant: Path, original: Path, reference: Reference) -> dict[str, Any]:
    if not variant.is_file():
        return {}
    try:
        return {"layer_errors": layer_errors(variant, original, reference.rows.inputs)}
    except Exception as error:  # not every operator's output can be one of the graph's
        return {"layer_errors": {}, "layer_errors_refused": runs("layers", error).detail}


def _tolerance(reference: Reference, limits: Limits, outputs: Mapping[str, Array]) -> Tolerance:
    """Per output: four times the largest error measured on the golden rows, between a tenth of the limit and the limit."""
    tolerance = {}
    for name, expected in reference.outputs.items():
        limit = limits.max_error * reference.peak(name)
        measured = max_error(outputs[name][:NUM_GOLDEN], expected[:NUM_GOLDEN]) if name in outputs else 0.0
        allowed = min(max(_GOLDEN_HEADROOM * measured, _GOLDEN_FLOOR * limit), limit) if np.isfinite(measured) else 0.0
        tolerance[name] = {"rtol": 0.0, "atol": float(allowed)}
    return tolerance


def _num_kept(array: Array) -> int:
    return max(NUM_GOLDEN, _KEPT_BYTES * len(array) // max(array.nbytes, 1))


def _file_facts(directory: Path, baseline: Baseline | None) -> dict[str, Any]:
    files = {path.name: path.stat().st_size for path in sorted(directory.iterdir()) if path.name != CERTIFICATE}
    size = sum(files.values())
    facts: dict[str, Any] = {"files_bytes": files, "size_bytes": size, "libraries": package_versions(_LIBRARIES)}
    if baseline is not None and baseline.weights_bytes > 0:
        facts |= {"fp32_weights_bytes": baseline.weights_bytes, "size_ratio": round(size / baseline.weights_bytes, 4)}
    return facts


def _reference_facts(reference: Reference, limits: Limits) -> dict[str, Any]:
    return {
        "inputs": {spec.name: f"{spec.datatype}{list(spec.shape)}" for spec in reference.signature.inputs},
        "outputs": {spec.name: f"{spec.datatype}{list(spec.shape)}" for spec in reference.signature.outputs},
        "held_out_rows": len(reference.rows),
        "rows_origin": reference.origin,
        "limits": asdict(limits),
    }
