"""The certificate of a variant: its files, run as they lie in the bundle, held against the eager float32 model.

Nothing here knows how a variant was made. Errors are absolute and their limits are fractions of the largest absolute
value of the output, so that one limit serves logits of any scale. A NaN in a measurement fails its check.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from registry.bundle import CERTIFICATE
from registry.certificate import Certificate, Check
from registry.names import ModelVersion
from registry.signature import NUMPY_DTYPES, Signature
from training.data.batches import Array, Rows
from training.environment import package_versions
from training.evaluate import finite_or_none, quality, quality_name
from training.export.exporter import Inspection, Limits
from training.export.latency import measure_latency
from training.export.runners import VariantRunner, open_variant
from training.recipe import Task

BATCH_SIZES = (1, 2, 7, 32)
_ROWS_PER_BATCH_SIZE = 64
_CHUNK_ROWS = 32
_PERMUTATION_SEED = 0

NUM_GOLDEN = 16  # the first held-out rows
# The golden set is held to what was measured on it, with headroom for another CPU's arithmetic, within the limits.
_GOLDEN_HEADROOM = 4.0
_GOLDEN_FLOOR = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """What a variant is held against.

    Attributes:
        signature: The model's inputs and outputs.
        rows: Held-out rows, at least 32.
        outputs: What the eager model answers to them, output name -> array [n, ...].
        task: Decides which quality the budget is about, and whether rows have a class.
    """

    signature: Signature
    rows: Rows
    outputs: Mapping[str, Array]
    task: Task

    def peak(self, output: str) -> float:
        """Largest absolute finite value of an output; 0 if it has none."""
        if self.outputs[output].dtype.kind in "OU":  # texts are equal or not
            return 0.0
        values = np.abs(self.outputs[output].astype(np.float64))
        return float(values[np.isfinite(values)].max(initial=0.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A certificate, and what the golden set may differ by: output name -> {"rtol", "atol"}."""

    certificate: Certificate
    tolerance: Mapping[str, Mapping[str, float]]


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
) -> Measured:
    """Measure the variant that lies in a directory. Whatever the runtime raises becomes a failed check.

    Args:
        directory: Holds the variant's files and nothing else.
        source_sha256: Digest of the weights that it was made from.
        accuracy_drop: How much the held-out quality may fall, as a fraction.
        inspection: What the exporter found in the files.
    """
    checks: list[Check] = []
    facts: dict[str, Any] = {**_file_facts(directory), **inspection.facts}
    outputs: dict[str, Array] = {}
    try:
        runner = open_variant(directory, reference.signature)
    except Exception as error:
        checks.append(_runs("loads", error))
    else:
        checks += [_runs("loads"), _provider_check(runner)]
        checks += [_batch_check(runner, reference, limits, size) for size in BATCH_SIZES]
        outputs, held_out_checks = _held_out(runner, reference, limits, accuracy_drop)
        checks += held_out_checks
        if outputs:
            checks += _row_checks(runner, reference, limits)
            facts["latency"] = {f"batch_{size}": measure_latency(runner, reference.rows.take(slice(0, size))) for size in (1, _CHUNK_ROWS)}
            facts[quality_name(reference.task)] = {
                "eager": finite_or_none(_quality(reference, reference.outputs)),
                "variant": finite_or_none(_quality(reference, outputs)),
            }
        facts |= {"provider": runner.provider, "held_out_rows": len(reference.rows)}
    checks += inspection.checks
    certificate = Certificate(version=version, source_sha256=source_sha256, variant=variant, checks=tuple(checks), facts=facts)
    return Measured(certificate=certificate, tolerance=_tolerance(reference, limits, outputs))


def failed_export(error: Exception, *, version: ModelVersion, source_sha256: str, variant: str, reference: Reference) -> Measured:
    """The certificate of a variant that could not be made."""
    certificate = Certificate(version=version, source_sha256=source_sha256, variant=variant, checks=(_runs("export", error),))
    return Measured(certificate=certificate, tolerance={name: {"rtol": 0.0, "atol": 0.0} for name in reference.outputs})


def _runs(name: str, error: Exception | None = None) -> Check:
    detail = "" if error is None else f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return Check(name=name, passed=error is None, value=float(error is None), limit=1, relation="==", detail=detail)


def _at_most(name: str, value: float, limit: float, detail: str = "") -> Check:
    return Check(name=name, passed=bool(value <= limit), value=value, limit=limit, detail=detail)


def _provider_check(runner: VariantRunner) -> Check:
    same = runner.provider == runner.wanted_provider
    detail = f"runs on {runner.provider}, wanted {runner.wanted_provider}"
    return Check(name="provider", passed=same, value=float(same), limit=1, relation="==", detail=detail)


def _batch_check(runner: VariantRunner, reference: Reference, limits: Limits, size: int) -> Check:
    """Parity at one batch size: the largest error of any output as a fraction of the limit's own scale."""
    name = f"batch/{size}/max_relative_error"
    rows = max(size, _ROWS_PER_BATCH_SIZE // size * size)
    rows = min(rows, len(reference.rows) // size * size)
    try:
        answers = _run_in_batches(runner, reference, rows, size)
    except Exception as error:
        detail = _runs(name, error).detail
        return Check(name=name, passed=False, value=float("inf"), limit=limits.max_error, detail=detail)
    worst = float(np.max([_max_error(answers[n], reference.outputs[n][:rows]) / (reference.peak(n) or 1.0) for n in reference.outputs]))
    return _at_most(name, worst, limits.max_error, f"{rows} rows")


def _held_out(runner: VariantRunner, reference: Reference, limits: Limits, accuracy_drop: float) -> tuple[dict[str, Array], list[Check]]:
    """Outputs for all held-out rows, and the checks that are about all of them."""
    num_rows = len(reference.rows)
    try:
        outputs = _run_in_batches(runner, reference, num_rows, _CHUNK_ROWS)
    except Exception as error:
        return {}, [_runs("held_out/runs", error)]
    mismatches = _signature_mismatches(reference, outputs)
    checks = [_at_most("signature/mismatches", len(mismatches), 0, "; ".join(mismatches))]
    if mismatches:
        return {}, checks
    for name, expected in reference.outputs.items():
        peak = reference.peak(name)
        checks += [
            _at_most(f"parity/{name}/max_abs_error", _max_error(outputs[name], expected), limits.max_error * peak, f"{num_rows} rows"),
            _at_most(f"parity/{name}/mean_abs_error", _mean_error(outputs[name], expected), limits.mean_error * peak, f"{num_rows} rows"),
            _at_most(f"finite/{name}/num_not_finite", _num_not_finite(outputs[name]), 0, f"of {outputs[name].size} values"),
            _at_most(f"finite/{name}/num_not_finite_eager", _num_not_finite(expected), 0, "of the model itself"),
        ]
    first = next(iter(reference.outputs))
    if reference.task == "classification":
        agreement = float(np.mean(outputs[first].argmax(-1) == reference.outputs[first].argmax(-1)))
        agrees = agreement >= limits.min_agreement
        checks.append(
            Check(
                name="parity/class_agreement",
                passed=agrees,
                value=agreement,
                limit=limits.min_agreement,
                relation=">=",
                detail=f"{num_rows} rows",
            )
        )
    eager, variant = _quality(reference, reference.outputs), _quality(reference, outputs)
    checks.append(
        _at_most(f"{quality_name(reference.task)}_drop", eager - variant, accuracy_drop, f"eager {eager:.4f}, variant {variant:.4f}")
    )
    return outputs, checks


def _row_checks(runner: VariantRunner, reference: Reference, limits: Limits) -> list[Check]:
    """The same rows alone, in a batch and in another order: an answer must depend on its own row only."""
    size = min(_CHUNK_ROWS, len(reference.rows))
    order = np.random.default_rng(_PERMUTATION_SEED).permutation(size)
    try:
        together = runner.run(reference.rows.take(slice(0, size)))
        alone = _run_in_batches(runner, reference, size, 1)
        permuted = runner.run(reference.rows.take(order))
    except Exception as error:
        return [_runs("rows/runs", error)]
    checks = []
    for name in reference.outputs:
        limit = limits.row_error * reference.peak(name)
        checks += [
            _at_most(f"rows/{name}/alone_max_abs_error", _max_error(alone[name], together[name]), limit, f"{size} rows"),
            _at_most(f"rows/{name}/permuted_max_abs_error", _max_error(permuted[name], together[name][order]), limit, f"{size} rows"),
        ]
    return checks


def _run_in_batches(runner: VariantRunner, reference: Reference, num_rows: int, size: int) -> dict[str, Array]:
    parts: dict[str, list[Array]] = {}
    for batch in _batches(num_rows, size):
        for name, array in runner.run(reference.rows.take(batch)).items():
            parts.setdefault(name, []).append(array)
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _batches(num_rows: int, size: int) -> Iterator[slice]:
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def _signature_mismatches(reference: Reference, outputs: Mapping[str, Array]) -> list[str]:
    mismatches = []
    for spec in reference.signature.outputs:
        array = outputs.get(spec.name)
        wanted = reference.outputs[spec.name].shape
        if array is None or array.shape != wanted or array.dtype != NUMPY_DTYPES[spec.datatype]:
            found = "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
            mismatches.append(f"{spec.name} is {found}, not {NUMPY_DTYPES[spec.datatype]} {list(wanted)}")
    return mismatches


def _quality(reference: Reference, outputs: Mapping[str, Array]) -> float:
    return quality(reference.task, outputs[next(iter(reference.outputs))], reference.rows.target)


def _errors(found: Array, expected: Array) -> Array:
    """Absolute differences in float64; infinite where the shapes do not even fit."""
    if found.shape != expected.shape:
        return np.full(1, np.inf)
    if found.dtype.kind in "OU" or expected.dtype.kind in "OU":
        return np.where(found.astype(object) == expected.astype(object), 0.0, np.inf)
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, which fails its check
        return np.abs(found.astype(np.float64) - expected.astype(np.float64))


def _max_error(found: Array, expected: Array) -> float:
    return float(_errors(found, expected).max())


def _mean_error(found: Array, expected: Array) -> float:
    return float(_errors(found, expected).mean())


def _num_not_finite(array: Array) -> int:
    return int(np.count_nonzero(~np.isfinite(array))) if array.dtype.kind == "f" else 0


def _tolerance(reference: Reference, limits: Limits, outputs: Mapping[str, Array]) -> dict[str, dict[str, float]]:
    """Per output: four times the largest error measured on the golden rows, between a tenth of the limit and the limit."""
    tolerance = {}
    for name, expected in reference.outputs.items():
        limit = limits.max_error * reference.peak(name)
        measured = _max_error(outputs[name][:NUM_GOLDEN], expected[:NUM_GOLDEN]) if name in outputs else 0.0
        allowed = min(max(_GOLDEN_HEADROOM * measured, _GOLDEN_FLOOR * limit), limit) if np.isfinite(measured) else 0.0
        tolerance[name] = {"rtol": 0.0, "atol": float(allowed)}
    return tolerance


def _file_facts(directory: Path) -> dict[str, Any]:
    files = {path.name: path.stat().st_size for path in sorted(directory.iterdir()) if path.name != CERTIFICATE}
    return {
        "files_bytes": files,
        "size_bytes": sum(files.values()),
        "libraries": package_versions(("torch", "onnxruntime", "numpy")),
    }
