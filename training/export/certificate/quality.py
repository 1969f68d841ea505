"""What a variant may lose in quality on the held-out rows, and whether the rows are enough to say so.

Two checks. `<quality>_drop`: the drop as it was measured is within the budget. `<quality>_drop/interval_high`: its 95% interval does not
reach beyond twice the budget. The second is asked only of samples in which the budget is ten rows or more: in fewer rows every interval
is wide, and a budget of nothing has none. So a variant that exchanges many right answers for others is refused even where they balance.

    2048 rows, budget 0.01 (20 rows): 12 lost, 2 gained: drop 0.0049, interval 0.0015..0.0088: both hold
                                      60 lost, 45 gained: drop 0.0073, interval -0.0024..0.0171: both hold
                                      160 lost, 145 gained: drop 0.0073, interval -0.0093..0.0234: refused
    360 rows, budget 0.01 (3 rows):   the measured drop decides alone
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from registry.certificate import Check
from training.data.batches import Array
from training.evaluate import finite_or_none, quality
from training.export.certificate.checks import at_most
from training.export.certificate.reference import Reference
from training.export.certificate.significance import CONFIDENCE, interval_of_change, mcnemar

MIN_ROWS_IN_BUDGET = 10
INTERVAL_BUDGETS = 2.0  # how many budgets the interval may reach


def quality_checks(reference: Reference, outputs: Mapping[str, Array], accuracy_drop: float) -> tuple[list[Check], dict[str, Any]]:
    """The checks, and the facts: `quality` names the measure, under which its numbers are.

    Args:
        outputs: The variant's answers to all held-out rows, of the reference's shapes.
        accuracy_drop: How much the quality may fall, as a fraction.
    """
    name, target, num_rows = reference.quality_name, reference.rows.target, len(reference.rows)
    eager, variant = reference.outputs[reference.first], outputs[reference.first]
    before, after = quality(reference.task, eager, target), quality(reference.task, variant, target)
    low, high = interval_of_change(reference.task, eager, variant, target)
    numbers: dict[str, Any] = {
        "eager": finite_or_none(before),
        "variant": finite_or_none(after),
        "change": finite_or_none(after - before),
        "interval": [finite_or_none(low), finite_or_none(high)],
        "confidence": CONFIDENCE,
    }
    detail = f"eager {before:.4f}, variant {after:.4f}"
    if reference.task == "classification":
        test = mcnemar(eager.argmax(-1) == target, variant.argmax(-1) == target)
        numbers["mcnemar"] = {"lost": test.num_lost, "gained": test.num_gained, "p_exact": test.p_exact, "p_mid": test.p_mid}
        detail += f", {test.num_lost} rows lost, {test.num_gained} gained, McNemar mid-p {test.p_mid:.3g}"
    checks = [at_most(f"{name}_drop", before - after, accuracy_drop, detail)]
    enough = num_rows * accuracy_drop >= MIN_ROWS_IN_BUDGET
    if enough:
        most, least = 0.0 - low, 0.0 - high  # of the drop; without a negative zero
        about = f"{CONFIDENCE:.0%} interval {least:.4f}..{most:.4f} of the drop, {num_rows} rows"
        checks.append(at_most(f"{name}_drop/interval_high", most, INTERVAL_BUDGETS * accuracy_drop, about))
    numbers["interval_decides"] = enough
    labels = f"{num_rows} rows" if reference.labelled else "none: the targets are the model's own answers, so this is agreement with them"
    return checks, {"quality": name, name: numbers, "labels": labels}
