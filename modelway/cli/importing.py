"""import: a model that was trained elsewhere becomes a version."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from modelway.cli.output import JsonOption, Row, print_facts, say
from registry.errors import UsageError
from registry.names import parse_model_version

_VERSION = "models:/"


def add_to(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command(name="import")(import_)


def import_(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE|models:/MODEL/VERSION",
            help=".onnx, .pt (TorchScript), .pt2, .safetensors or a state dict; or a version in MLflow that Modelway did not make.",
        ),
    ],
    *,
    name: Annotated[str | None, typer.Option(metavar="MODEL", help="Registered model that gets a new version.")] = None,
    sample: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Rows for every input: one array per name, the first dimension the rows.")
    ] = None,
    labels_from: Annotated[str, typer.Option(metavar="ARRAY", help="The sample's array that holds labels, if it is there.")] = "target",
    task: Annotated[
        Literal["classification", "regression"] | None,
        typer.Option(help="classification or regression; by default the first if there are integer labels, else the second."),
    ] = None,
    class_path: Annotated[str | None, typer.Option(metavar="PACKAGE.MODULE.CLASS", help="The class that weights belong to.")] = None,
    init_args: Annotated[str | None, typer.Option(metavar="YAML", help="Its arguments, as YAML or JSON.")] = None,
    outputs: Annotated[str | None, typer.Option(metavar="NAMES", help="Names of the outputs, comma-separated, in order.")] = None,
    dynamic: Annotated[
        list[str] | None, typer.Option(metavar="INPUT=DIMENSIONS", help="Free dimensions beside the batch, for example input_ids=1.")
    ] = None,
    fix: Annotated[list[str] | None, typer.Option(metavar="INPUT=VALUE", help="Bind an input to a constant, for example sr=16000.")] = None,
    batch_axis: Annotated[
        list[str] | None, typer.Option(metavar="NAME=DIMENSION", help="Where the batch of an input or output lies, if not first.")
    ] = None,
    normalize: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT:mean=..,std=..,scale=..", help="(x * scale - mean) / std inside the model, per channel."),
    ] = None,
    serving: Annotated[
        Path | None, typer.Option(metavar="DIRECTORY", help="transforms.json, labels, a tokenizer: they travel with the model.")
    ] = None,
    accuracy_drop: Annotated[float | None, typer.Option(min=0, max=1, help="Quality that a variant may lose.")] = None,
    variants: Annotated[str | None, typer.Option(help="What `modelway export` makes, comma-separated; by default all that fit.")] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read a file that only unpickling can read, in a process with limits.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Import a model that was trained elsewhere, with a sample of its inputs.

    \b
    modelway import resnet.onnx --name resnet --sample inputs.npz
    modelway import weights.safetensors --name net --class-path my_package.Net --init-args '{width: 32}' --sample inputs.npz
    """
    from modelway.composition import open_tracking
    from modelway.settings import load_settings
    from training.importing.mlflow_version import adopt_version
    from training.importing.request import (
        Adaptation,
        ImportRequest,
        parse_batch_axes,
        parse_dynamic,
        parse_fixed,
        parse_init_args,
        parse_normalize,
    )
    from training.importing.story import import_model
    from training.recipe import ComponentConfig, ExportConfig
    from training.tracking import Tracking

    adaptation = Adaptation(
        fixed=parse_fixed(fix or []), batch_axes=parse_batch_axes(batch_axis or []), normalize=parse_normalize(normalize or [])
    )
    export = ExportConfig(
        variants=_names(variants),
        outputs=_names(outputs),
        dynamic=parse_dynamic(dynamic or []),
        serving=None if serving is None else str(serving),
        accuracy_drop=ExportConfig().accuracy_drop if accuracy_drop is None else accuracy_drop,
    )
    tracking = open_tracking(load_settings())
    opened = Tracking(tracking.uri, artifact_root=tracking.artifact_root)
    if file.startswith(_VERSION):
        version = parse_model_version(file)
        if name not in (None, version.model) or class_path is not None:
            raise UsageError(f"a version in MLflow stays what it is ({file})", "Leave --name and --class-path out.")
        adopted = adopt_version(
            version,
            tracking=opened,
            sample=sample,
            task=task,
            export=export,
            adaptation=adaptation,
            allow_pickle=allow_pickle,
            progress=say,
        )
        facts: Row = {"version": str(version), "already": adopted.already, "kind": adopted.kind, "run": adopted.run_id}
    else:
        if name is None or sample is None:
            raise UsageError(f"an import needs a name and a sample ({file})", "Give --name MODEL and --sample FILE.npz.")
        if init_args is not None and class_path is None:
            raise UsageError(f"--init-args needs a class ({init_args})", "Give --class-path PACKAGE.MODULE.CLASS.")
        model = None if class_path is None else ComponentConfig(class_path=class_path, init_args=parse_init_args(init_args or "{}"))
        request = ImportRequest(
            file=Path(file),
            name=name,
            sample=sample,
            labels_from=labels_from,
            task=task,
            export=export,
            adaptation=adaptation,
            model=model,
            allow_pickle=allow_pickle,
        )
        imported = import_model(request, tracking=opened, progress=say)
        facts = {"version": str(imported.model_version), "already": imported.already, "kind": imported.kind, "labels": imported.labelled}
        if imported.signature is not None:
            facts |= {"inputs": ", ".join(map(str, imported.signature.inputs)), "outputs": ", ".join(map(str, imported.signature.outputs))}
    print_facts(facts, as_json=as_json)
    if facts["already"]:
        say(f"already imported as {facts['version']}")
    say(f"Next: modelway export {facts['version']}")


def _names(text: str | None) -> tuple[str, ...] | None:
    return tuple(name.strip() for name in text.split(",")) if text else None
