"""Writes docs/cli.md from the command line's own --help; `--check` only says whether it is up to date."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer.main

_PATH = Path(__file__).parent.parent / "docs" / "cli.md"
_WIDTH = 100
_HEAD = "# Command line\n\nGenerated from `--help` by `make docs`.\n"


def render() -> str:
    """The whole document."""
    from modelway.cli.app import app  # noqa: PLC0415  so that --help of this script needs nothing

    root = typer.main.get_command(app)
    sections = [_section(root, "modelway")]
    sections += [_section(command, f"modelway {name}") for name, command in _commands(root).items()]
    return "\n".join([_HEAD, *sections])


def _commands(group: Any) -> dict[str, Any]:
    return {name: command for name, command in group.commands.items() if not command.hidden}


def _section(command: Any, title: str) -> str:
    context = command.context_class(command, info_name=title, terminal_width=_WIDTH, max_content_width=_WIDTH)
    lines = (line.rstrip() for line in command.get_help(context).splitlines())
    return f"## {title}\n\n```\n{chr(10).join(lines).strip()}\n```\n"


def main(path: Path, text: str) -> int:
    """Write the document, or check it; the exit status."""
    if "--check" not in sys.argv[1:]:
        path.write_text(text)
        return 0
    if path.is_file() and path.read_text() == text:
        return 0
    sys.stderr.write(f"Error: out of date ({path.name}). Run: make docs\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(_PATH, render()))
