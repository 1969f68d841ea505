"""Weights and a class as a source: the class is made, the weights are put in, and everything is kept as safetensors."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from registry.errors import UsageError
from training.components import build_model
from training.importing.adapted import adapted_component
from training.importing.brought import Brought
from training.importing.class_inputs import taken_by
from training.importing.request import ImportRequest
from training.importing.sample import Sample
from training.importing.unpickling import refuse_pickle, unpickle_state
from training.recipe import ComponentConfig
from training.source.imported import model_file

State = dict[str, torch.Tensor]
_NESTED = ("state_dict", "model_state_dict", "model")  # where checkpoints keep the weights among other things
_SHOWN = 3


def bring_weights(request: ImportRequest, component: ComponentConfig, sample: Sample, into: Path) -> Brought:
    """Write the weights as `weights.safetensors`, after proving that they fit the class.

    Raises:
        UsageError: The file holds no weights, the class cannot be made, they do not fit, or the sample has other inputs.
        Refused: Only unpickling can read the file, and that was not allowed.
    """
    model = build_model(component).eval()
    put_weights(model, read_state(request.file, allow_pickle=request.allow_pickle), class_path=component.class_path)
    taken = taken_by(model, sample, request.adaptation, what=component.class_path)
    facts = {"parameters": sum(p.numel() for p in model.parameters()), "class": component.class_path}
    if not taken.by_position:
        component = adapted_component(component, inputs=tuple(taken.inputs), outputs=request.export.outputs, adaptation=request.adaptation)
        adapted = build_model(component)
        assert isinstance(adapted.model, nn.Module)
        adapted.model.load_state_dict(model.state_dict())
        model = adapted.eval()
    safetensors.torch.save_model(model, str(model_file(into, "module")))
    return Brought(kind="module", inputs=taken.inputs, outputs=request.export.outputs, model=component, facts=facts)


def read_state(file: Path, *, allow_pickle: bool) -> State:
    """Weights by name, on the CPU, from safetensors or from a file of torch.save.

    Raises:
        UsageError: Neither, or something else than weights is in it.
        Refused: Only unpickling can read the file, and that was not allowed.
    """
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        return weights_in(torch.load(file, map_location="cpu", weights_only=True), file)
    except pickle.UnpicklingError as error:
        if not allow_pickle:
            raise refuse_pickle(file, error) from error
        return unpickle_state(file)
    except (OSError, RuntimeError, EOFError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"cannot read weights ({file}: {reason})", "Give a .safetensors file, or one of torch.save.") from error


def weights_in(loaded: Any, file: Path) -> State:
    """The weights in what was loaded: a state dict, or a checkpoint that has one under a usual key. Raises UsageError."""
    if isinstance(loaded, Mapping):
        for key in _NESTED:
            if isinstance(loaded.get(key), Mapping):
                loaded = loaded[key]
                break
    wrong = f"{type(loaded).__name__}"
    if isinstance(loaded, Mapping) and loaded:
        strange = [key for key, value in loaded.items() if not (isinstance(key, str) and isinstance(value, torch.Tensor))]
        if not strange:
            return dict(loaded)
        wrong = f"{strange[0]!r} is a {type(loaded[strange[0]]).__name__}"
    raise UsageError(f"the file does not hold weights by name ({file}: {wrong})", "Save model.state_dict().")


def put_weights(model: nn.Module, state: State, *, class_path: str) -> None:
    """Load the weights; every one must be used, and nothing may be missing.

    Two things are no difference: a tensor that the file leaves out because another name has it, and one in the file that the
    class makes itself (a buffer that is not saved).

    Raises:
        UsageError: They do not fit; names the first that do not.
    """
    try:
        result = model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # torch's word for a wrong shape
        raise UsageError(f"the weights do not fit the class ({class_path}: {' '.join(str(error).split())[:300]})", _OTHER_ARGS) from error
    made = {name for name, _ in model.named_buffers()} - set(model.state_dict())
    unexpected = [name for name in result.unexpected_keys if name not in made]
    own = model.state_dict()
    present = {own[name].data_ptr() for name in own if name not in result.missing_keys}
    missing = [name for name in result.missing_keys if own[name].data_ptr() not in present]
    if missing or unexpected:
        raise UsageError(
            f"the weights do not fit the class ({class_path}: missing {_some(missing)}; unexpected {_some(unexpected)})", _OTHER_ARGS
        )


_OTHER_ARGS = "Give the class and the --init-args that the weights were made with."


def _some(names: list[str]) -> str:
    if not names:
        return "none"
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
