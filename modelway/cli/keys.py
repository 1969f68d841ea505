"""keys add, list, remove: who may ask the gateway, and how often."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from modelway.cli.output import JsonOption, print_facts, print_rows, say
from registry.errors import UsageError

if TYPE_CHECKING:
    from serving.api_keys import KeyFile

_keys = typer.Typer(
    help="""API keys of the gateway: make, list, remove. A running platform follows within about a second.

\b
    modelway keys add scanner --requests-per-s 200
    modelway keys list
""",
    no_args_is_help=True,
    rich_markup_mode=None,
)
_Name = Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is: lower-case letters, digits, '-' and '_'.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    _keys.command("add")(add)
    _keys.command("list")(list_keys)
    _keys.command("remove")(remove)
    app.add_typer(_keys, name="keys")


def _file() -> KeyFile:
    from modelway.settings import load_settings
    from serving.api_keys import KeyFile

    path = load_settings().api_keys_file
    if path is None:
        raise UsageError(
            "no file of API keys is set (api_keys_file)",
            "Set MODELWAY_API_KEYS_FILE, for example to api-keys.toml, and start the platform anew.",
        )
    return KeyFile(path)


def add(
    name: _Name,
    *,
    requests_per_s: Annotated[float | None, typer.Option(help="Requests per second on average; no limit without it.")] = None,
    burst: Annotated[int | None, typer.Option(help="Requests at once after a pause; by default what one second allows.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="A model that it may ask; may be repeated. Without it: all.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key. It is shown once, on stdout; the file keeps a digest.

    \b
    modelway keys add scanner
    modelway keys add partner --requests-per-s 20 --burst 50 --model digits
    """
    from serving.api_keys import new_key

    file = _file()
    if burst is not None and requests_per_s is None:
        raise UsageError(f"a burst needs a rate (--burst {burst})", "Give --requests-per-s too.")
    key, word = new_key(name, requests_per_s=requests_per_s, burst=burst, models=tuple(model) if model else None)
    file.add(key)
    print_facts({"name": name, "key": word}, as_json=as_json)
    say(f"Written to {file.path}. Send it as `x-api-key: KEY` or `authorization: Bearer KEY`; it cannot be shown again.")


def list_keys(*, as_json: JsonOption = False) -> None:
    """The keys by name, with their limits; never the keys themselves.

    \b
    modelway keys list
    modelway keys list --json
    """
    rows = [
        {
            "name": key.name,
            "requests per s": key.requests_per_s,
            "burst": key.burst if key.requests_per_s is not None else None,
            "models": ", ".join(key.models) if key.models is not None else "all",
        }
        for key in _file().read()
    ]
    print_rows(rows, as_json=as_json, empty="There is no API key: nobody can ask the gateway. Make one with modelway keys add NAME.")


def remove(name: _Name, *, as_json: JsonOption = False) -> None:
    """Take a key away; whoever has it is refused from then on.

    \b
    modelway keys remove scanner
    modelway keys remove scanner --json
    """
    file = _file()
    file.remove(name)
    print_facts({"removed": name}, as_json=as_json)
    say(f"Written to {file.path}.")
