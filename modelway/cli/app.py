"""The command line's root: which commands there are, and what all of them share."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer

from modelway.cli import exporting, importing, keys, models, operations, releases, tuning
from modelway.cli.output import say
from registry.errors import ModelwayError

_EXAMPLES = """
Takes a PyTorch model from a training run to production traffic and back.

\b
    modelway up --detach
    modelway promote digits/3 --reason "better on sevens"

Exit codes: 0 done or already so, 1 failed, 2 usage, 3 refused by a gate or a verdict, 4 timed out, 5 conflict.
"""

app = typer.Typer(
    help=_EXAMPLES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
operations.add_to(app)
models.add_to(app)
importing.add_to(app)
exporting.add_to(app)
releases.add_to(app)
tuning.add_to(app)
keys.add_to(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("modelway"))
        raise typer.Exit


@app.callback()
def _root(
    show_traceback: Annotated[bool, typer.Option("--traceback", help="Print the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    del show_traceback, version  # read by `main` and by the callback


def main() -> None:
    """Run the command line and exit. Our own errors become one line and their exit code."""
    for variable in ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED", "MLFLOW_DISABLE_TELEMETRY"):
        os.environ.setdefault(variable, "true" if variable.startswith("MLFLOW") else "1")  # nobody asked for reports to vendors
    try:
        app()
    except ModelwayError as error:
        if "--traceback" in sys.argv:
            traceback.print_exc()
        say(f"Error: {error}")
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read us has gone; nothing more to say
        sys.exit(1)
