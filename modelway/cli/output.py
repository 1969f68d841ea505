"""How the command line speaks: one place that renders a result as a table or as JSON, and all talk on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

Row = dict[str, Any]

_PIPE_WIDTH = 400


def say(text: str) -> None:
    """One line of talk."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201  this is the command line


def print_json(value: object) -> None:
    """One JSON document as the result."""
    print(json.dumps(value, indent=2, default=str))  # noqa: T201  this is the command line


def print_rows(rows: Sequence[Row], *, as_json: bool, empty: str = "") -> None:
    """The same rows as a table or as a JSON list; `empty` is said when there are none."""
    if as_json:
        print_json(list(rows))
        return
    if not rows:
        say(empty)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in rows[0]:
        table.add_column(name.upper(), overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    # In a pipe or a file there is no screen to fit: every row is one line.
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)


def print_facts(facts: Row, *, as_json: bool) -> None:
    """One result with named values: lines of `name  value`, or a JSON object."""
    if as_json:
        print_json(facts)
        return
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        print(f"{name.ljust(width)}  {_cell(value)}")  # noqa: T201  this is the command line


def runs_with(options: Mapping[str, Any] | None) -> str | None:
    """How a release's workers run, in one cell; what its options leave to the settings is left out. None if it recorded none."""
    if options is None:
        return None
    workers, batch_size = options.get("num_workers", 0), options.get("batch_size", 0)
    words = [f"{workers} worker(s)"] if workers else []
    words.append(f"{options['intra_op_threads']} thread(s)")
    words += [f"batch {batch_size}"] if batch_size else []
    return ", ".join(words)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def progress_line() -> Callable[[str], None]:
    """A line on stderr that is overwritten on a terminal, and only written when it changes elsewhere."""
    last = ""

    def show(text: str) -> None:
        nonlocal last
        if text == last:
            return
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{text}" if text else "\r\x1b[K")
            sys.stderr.flush()
        elif text:
            say(text)
        last = text

    return show
