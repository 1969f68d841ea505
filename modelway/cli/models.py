"""train and predict: from a recipe to an answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelway.cli.output import JsonOption, Row, print_facts, print_json, say
from registry.errors import UsageError
from registry.names import ModelAlias, check_model_name, parse_model_ref

if TYPE_CHECKING:
    from modelway.client import Array


# What a file of that name is sent as, to a model that declares a transform for it.
_CONTENT_TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".txt": "text/plain"}


def add_to(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(train)
    app.command()(predict)


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a recipe that comes with Modelway, or path of a YAML file.")],
    *,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe; may be repeated.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a recipe, log the run to MLflow, and register a version.

    \b
    modelway train digits
    modelway train my_recipe.yaml --set trainer.max_epochs=20
    """
    from modelway.composition import open_tracking
    from modelway.settings import load_settings
    from training.pipeline import train as train_recipe

    tracking = open_tracking(load_settings())
    trained = train_recipe(recipe, overrides or [], tracking_uri=tracking.uri, artifact_root=tracking.artifact_root, progress=say)
    facts: Row = {"version": str(trained.model_version), "run": trained.run_id, **trained.metrics}
    print_facts(facts, as_json=as_json)
    say(f"Next: modelway export {trained.model_version}")


def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL[/VERSION|@CHANNEL]", help="For example digits, digits/3 or digits@staging.")],
    *,
    source: Annotated[
        str,
        typer.Option(
            "--input",
            help="A .json file (one array, or input name to array), a .npy or .npz file, or - for JSON on stdin; "
            "a .jpg, .png or .txt file for a model that takes them.",
        ),
    ] = "-",
    as_json: JsonOption = False,
) -> None:
    """Ask a model through the gateway.

    \b
    modelway predict digits --input images.npy
    modelway predict lite0 --input cat.jpg
    echo '[[0.1, 0.2, 0.3, 0.4]]' | modelway predict tabular
    """
    from modelway.gateway_access import open_client
    from modelway.settings import load_settings

    name, version, channel = _parse_target(model)
    content_type = _CONTENT_TYPES.get(Path(source).suffix.lower())
    if content_type is not None:
        body = _read_body(source)
        with open_client(load_settings(), channel=channel) as client:
            got = client.infer_body(name, body, content_type, version=version)
        facts: Row = {"version": got.version, "release": got.release, "request_id": got.request_id}
        labels = got.answer if isinstance(got.answer, dict) and not as_json else {"answer": got.answer}
        print_facts(facts | labels, as_json=as_json)
        return
    with open_client(load_settings(), channel=channel) as client:
        signature = client.signature(name)
        datatypes = {spec.name: spec.datatype for spec in signature.inputs}
        answer = client.infer_traced(name, _read_inputs(source, datatypes), version=version)
    outputs = {name: array.tolist() for name, array in answer.outputs.items()}
    result = {"version": answer.version, "release": answer.release, "request_id": answer.request_id, "outputs": outputs}
    if as_json:
        print_json(result)
    else:
        print_facts({**result, "outputs": None} | outputs if len(outputs) == 1 else result, as_json=False)


def _read_body(source: str) -> bytes:
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the input ({source}: {error})", "Give the path of a .jpg, .png or .txt file.") from error


def _parse_target(text: str) -> tuple[str, int | None, str | None]:
    if "/" not in text and "@" not in text:
        return check_model_name(text), None, None
    ref = parse_model_ref(text)
    return (ref.model, None, ref.channel) if isinstance(ref, ModelAlias) else (ref.model, ref.version, None)


def _read_inputs(source: str, datatypes: dict[str, str]) -> dict[str, Array]:
    """Input name -> array, in the datatype of the signature. Raises UsageError."""
    import numpy as np

    from registry.signature import NUMPY_DTYPES

    try:
        if source.endswith((".npy", ".npz")):
            loaded = np.load(source, allow_pickle=False)
            given = dict(loaded) if source.endswith(".npz") else loaded
        else:
            given = json.loads(sys.stdin.read() if source == "-" else Path(source).read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the input ({source}: {error})", "Give a .json, .npy or .npz file, or JSON on stdin.") from error
    if not isinstance(given, dict):
        if len(datatypes) != 1:
            raise UsageError(f"the model has {len(datatypes)} inputs", f"Give an object with the keys {', '.join(datatypes)}.")
        given = {next(iter(datatypes)): given}
    unknown = sorted(given.keys() - datatypes.keys())
    if unknown:
        raise UsageError(f"the model has no input {unknown[0]!r}", f"Its inputs are {', '.join(datatypes)}.")
    try:
        return {name: np.asarray(value, dtype=NUMPY_DTYPES[datatypes[name]]) for name, value in given.items()}
    except (TypeError, ValueError) as error:
        raise UsageError(f"the input is not a regular array of numbers ({error})", "Rows must have equal lengths.") from error
