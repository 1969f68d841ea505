"""Other lengths than that of the held-out rows, where the signature leaves a dimension beside the batch free."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from registry.certificate import Check
from training.data.batches import Array
from training.export.certificate.checks import at_most, could_not_run, runs
from training.export.certificate.reference import Reference
from training.export.certificate.row_checks import Facts, output_errors, run_in_batches, worst_error
from training.export.exporter import Limits
from training.export.runners import VariantRunner

_ROWS = 8
_FRACTIONS = (2, 4)  # of the reference's length: a half and a quarter


def length_checks(runner: VariantRunner, reference: Reference, limits: Limits) -> tuple[list[Check], Facts]:
    """Parity at other lengths; the model itself says what is right.

    Rows are cut to a half and to a quarter. Inputs that have the same length in a free dimension are cut together: token ids
    and their mask. A length that the model itself refuses is a fact; if it refuses all, the dimension was not checked, and that fails.
    """
    groups = _free_lengths(reference)
    if not groups:
        return [], {}
    if reference.ask is None:
        return [runs("length/asked", RuntimeError("dimensions are free, and there is no model to ask at other lengths"))], {}
    checks: list[Check] = []
    facts: Facts = {}
    for length, dimensions in groups.items():
        before = len(checks)
        for shorter in sorted({length // fraction for fraction in _FRACTIONS} - {0, length}, reverse=True):
            label = str(shorter) if len(groups) == 1 else f"{length}_to_{shorter}"
            inputs = _cut(reference.rows.take(slice(0, _ROWS)), dimensions, shorter)
            try:
                expected = reference.ask(inputs)
            except Exception as error:  # the model itself cannot, so no variant has to
                facts[label] = f"the model itself refuses: {runs(label, error).detail}"
                continue
            name = f"length/{label}/max_relative_error"
            try:
                together = run_in_batches(runner, inputs, _ROWS, _ROWS)
                alone = run_in_batches(runner, inputs, 1, 1)
            except Exception as error:
                checks.append(could_not_run(name, error, limits.max_error))
                continue
            one = {output: array[:1] for output, array in expected.items()}
            worst = float(np.max([worst_error(together, expected, reference), worst_error(alone, one, reference)]))
            checks.append(at_most(name, worst, limits.max_error, f"{_ROWS} rows together, 1 alone"))
            facts[label] = output_errors(together, expected)
        if len(checks) == before:
            checks.append(runs("length/asked", RuntimeError(f"no other length than {length} could be tried")))
    return checks, facts


def _free_lengths(reference: Reference) -> dict[int, list[tuple[str, int]]]:
    """Length in the reference's rows -> the free dimensions (input, number) that have it."""
    groups: dict[int, list[tuple[str, int]]] = {}
    for spec in reference.signature.inputs:
        for dimension, size in enumerate(spec.shape):
            if dimension > 0 and size == -1:
                groups.setdefault(reference.rows.inputs[spec.name].shape[dimension], []).append((spec.name, dimension))
    return groups


def _cut(inputs: Mapping[str, Array], dimensions: list[tuple[str, int]], length: int) -> dict[str, Array]:
    cut = dict(inputs)
    for name, dimension in dimensions:
        cut[name] = np.ascontiguousarray(cut[name].take(range(length), axis=dimension))
    return cut
