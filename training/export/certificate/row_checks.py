"""The same rows in batches of other sizes, alone, in another order, and again: what must not change an answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from registry.certificate import Check
from registry.signature import NUMPY_DTYPES
from training.data.batches import Array
from training.export.certificate.checks import at_most, could_not_run, runs
from training.export.certificate.parity import compare, max_error, num_not_finite
from training.export.certificate.reference import Reference, peak
from training.export.exporter import Limits
from training.export.runners import VariantRunner

BATCH_SIZES = (1, 2, 7, 32)
CHUNK_ROWS = 32
_ROWS_PER_BATCH_SIZE = 64
_PERMUTATION_SEED = 0

Facts = dict[str, Any]


def batch_checks(runner: VariantRunner, reference: Reference, limits: Limits) -> tuple[list[Check], Facts]:
    """Parity at each batch size, and the errors of each output there."""
    checks, facts = [], {}
    for size in BATCH_SIZES:
        name = f"batch/{size}/max_relative_error"
        num_rows = min(max(size, _ROWS_PER_BATCH_SIZE // size * size), len(reference.rows) // size * size)
        try:
            answers = run_in_batches(runner, reference.rows.inputs, num_rows, size)
        except Exception as error:
            checks.append(could_not_run(name, error, limits.max_error))
            continue
        expected = {output: array[:num_rows] for output, array in reference.outputs.items()}
        checks.append(at_most(name, worst_error(answers, expected, reference), limits.max_error, f"{num_rows} rows"))
        facts[f"batch_{size}"] = output_errors(answers, expected)
    return checks, facts


def held_out(runner: VariantRunner, reference: Reference, limits: Limits) -> tuple[dict[str, Array], list[Check], Facts]:
    """Outputs for all held-out rows (none if they are not what the signature says), the checks of their values, and their errors."""
    num_rows = len(reference.rows)
    try:
        outputs = run_in_batches(runner, reference.rows.inputs, num_rows, CHUNK_ROWS)
    except Exception as error:
        return {}, [runs("held_out/runs", error)], {}
    mismatches = _signature_mismatches(reference, outputs)
    checks = [at_most("signature/mismatches", len(mismatches), 0, "; ".join(mismatches))]
    if mismatches:
        return {}, checks, {}
    facts = {}
    for name, expected in reference.outputs.items():
        scale = reference.peak(name)
        errors = compare(outputs[name], expected)
        checks += [
            at_most(f"parity/{name}/max_abs_error", errors.max_abs, limits.max_error * scale, f"{num_rows} rows"),
            at_most(f"parity/{name}/mean_abs_error", errors.mean_abs, limits.mean_error * scale, f"{num_rows} rows"),
            at_most(f"finite/{name}/num_not_finite", num_not_finite(outputs[name]), 0, f"of {outputs[name].size} values"),
            at_most(f"finite/{name}/num_not_finite_eager", num_not_finite(expected), 0, "of the model itself"),
        ]
        facts[name] = errors.to_json()
    if reference.task == "classification":
        agreement = float(np.mean(outputs[reference.first].argmax(-1) == reference.outputs[reference.first].argmax(-1)))
        checks.append(
            Check(
                name="parity/class_agreement",
                passed=agreement >= limits.min_agreement,
                value=agreement,
                limit=limits.min_agreement,
                relation=">=",
                detail=f"{num_rows} rows",
            )
        )
    return outputs, checks, facts


def row_checks(runner: VariantRunner, reference: Reference, limits: Limits) -> list[Check]:
    """The same rows alone, in a batch and in another order: an answer must depend on its own row only."""
    size = min(CHUNK_ROWS, len(reference.rows))
    order = np.random.default_rng(_PERMUTATION_SEED).permutation(size)
    try:
        together = runner.run(reference.rows.take(slice(0, size)))
        alone = run_in_batches(runner, reference.rows.inputs, size, 1)
        permuted = runner.run(reference.rows.take(order))
    except Exception as error:
        return [runs("rows/runs", error)]
    checks = []
    for name in reference.outputs:
        limit = limits.row_error * reference.peak(name)
        checks += [
            at_most(f"rows/{name}/alone_max_abs_error", max_error(alone[name], together[name]), limit, f"{size} rows"),
            at_most(f"rows/{name}/permuted_max_abs_error", max_error(permuted[name], together[name][order]), limit, f"{size} rows"),
        ]
    return checks


def first_answer(runner: VariantRunner, reference: Reference) -> dict[str, Array]:
    """The very first call of a variant, for `repeated_checks`; nothing if it raises, which the other checks report."""
    try:
        return runner.run(reference.rows.take(slice(0, CHUNK_ROWS)))
    except Exception:
        return {}


def repeated_checks(runner: VariantRunner, reference: Reference, limits: Limits, first: Mapping[str, Array]) -> list[Check]:
    """The first call's rows asked again, after all other calls: a variant must not remember, nor throw dice."""
    try:
        again = runner.run(reference.rows.take(slice(0, CHUNK_ROWS)))
    except Exception as error:
        return [runs("rows/repeats", error)]
    if set(first) != set(again):
        return [runs("rows/repeats", RuntimeError("the first call failed, a later one did not"))]
    detail = "the variant's first call, and the same rows after all others"
    return [
        at_most(f"rows/{name}/repeated_max_abs_error", max_error(again[name], first[name]), limits.row_error * reference.peak(name), detail)
        for name in reference.outputs
    ]


def run_in_batches(runner: VariantRunner, inputs: Mapping[str, Array], num_rows: int, size: int) -> dict[str, Array]:
    """Outputs for the first rows, asked `size` at a time. Raises whatever the runtime raises."""
    parts: dict[str, list[Array]] = {}
    for batch in _batches(num_rows, size):
        for name, array in runner.run({n: values[batch] for n, values in inputs.items()}).items():
            parts.setdefault(name, []).append(array)
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _batches(num_rows: int, size: int) -> Iterator[slice]:
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def worst_error(answers: Mapping[str, Array], expected: Mapping[str, Array], reference: Reference) -> float:
    """The largest error of any output as a fraction of the output's peak."""
    errors = [max_error(answers[name], array) / (reference.peak(name) or peak(array) or 1.0) for name, array in expected.items()]
    return float(np.max(errors))


def output_errors(answers: Mapping[str, Array], expected: Mapping[str, Array]) -> Facts:
    """Output -> its errors, as a certificate shows them."""
    return {name: compare(answers[name], array).to_json() for name, array in expected.items()}


def _signature_mismatches(reference: Reference, outputs: Mapping[str, Array]) -> list[str]:
    mismatches = []
    for spec in reference.signature.outputs:
        array = outputs.get(spec.name)
        wanted = reference.outputs[spec.name].shape
        if array is None or array.shape != wanted or array.dtype != NUMPY_DTYPES[spec.datatype]:
            found = "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
            mismatches.append(f"{spec.name} is {found}, not {NUMPY_DTYPES[spec.datatype]} {list(wanted)}")
    return mismatches
