"""Tables of the document."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def count(number: float) -> str:
    """A rate, as short as it is meant: `6,430`, `37.2`, and `-` for what was not measured."""
    if not number:
        return "-"
    return f"{number:,.0f}" if number >= 100 else f"{number:,.1f}"


def times(ratio: float | None) -> str:
    """A ratio, or `-`."""
    return "-" if ratio is None else f"{ratio:.2f}"
