"""The classes that a recipe names: found, checked, given their arguments.

A class may come from any installed package or from the working directory. Only subclasses of what the place asks for are
made, so that a recipe, or a version's description in the registry, cannot name any callable it likes.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from pathlib import Path
from typing import TypeVar

import lightning
import torch
from jsonargparse import ArgumentError, ArgumentParser

from registry.errors import UsageError
from training.recipe import ComponentConfig, Recipe, check_keys

T = TypeVar("T")
_ARGS = "init_args"


def resolve_recipe(recipe: Recipe) -> Recipe:
    """The recipe with every constructor default written out, both classes found and their arguments checked.

    Raises:
        UsageError: A class cannot be imported, is of the wrong kind, or does not take an argument.
    """
    return dataclasses.replace(
        recipe,
        model=_resolve(recipe.model, torch.nn.Module, "model")[1],
        data=_resolve(recipe.data, lightning.LightningDataModule, "data")[1],
    )


def build_model(config: ComponentConfig) -> torch.nn.Module:
    """A new model as the recipe describes it; its weights come from torch's global random state. Raises UsageError."""
    return _build(config, torch.nn.Module, "model")


def build_data(config: ComponentConfig) -> lightning.LightningDataModule:
    """A new DataModule as the recipe describes it. Raises UsageError."""
    return _build(config, lightning.LightningDataModule, "data")


def _build(config: ComponentConfig, kind: type[T], section: str) -> T:
    parser, resolved = _resolve(config, kind, section)
    try:
        built = parser.instantiate(parser.parse_object({_ARGS: dict(resolved.init_args)}))[_ARGS]
    except Exception as error:  # the user's constructor may raise anything
        raise UsageError(
            f"{section} cannot be made from its init_args ({config.class_path}: {type(error).__name__}: {_one_line(error)})",
            f"Correct {section}.init_args.",
        ) from error
    assert isinstance(built, kind)
    return built


def _resolve(config: ComponentConfig, kind: type, section: str) -> tuple[ArgumentParser, ComponentConfig]:
    component = _find(config.class_path, kind, section)
    parameters = tuple(inspect.signature(component).parameters.values())
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        check_keys(f"{section}.init_args", config.init_args, tuple(p.name for p in parameters))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(component, _ARGS)
    try:
        parsed = parser.parse_object({_ARGS: dict(config.init_args)})
    except ArgumentError as error:
        raise UsageError(
            f"{section}.init_args do not fit {config.class_path} ({_one_line(error).replace(f'{_ARGS}.', f'{section}.init_args.')})",
            f"It takes: {', '.join(str(p) for p in parameters) or 'nothing'}.",
        ) from error
    init_args = parsed.get(_ARGS)
    return parser, ComponentConfig(class_path=config.class_path, init_args=init_args.as_dict() if init_args else {})


def _find(class_path: str, kind: type, section: str) -> type:
    _make_importable(Path.cwd())
    module_name, _, name = class_path.rpartition(".")
    where = f"Install its package, or run in the directory that holds it ({Path.cwd()})."
    try:
        found = getattr(importlib.import_module(module_name), name)
    except ModuleNotFoundError as error:
        raise UsageError(f"{section}.class_path cannot be imported ({class_path}: no module {error.name})", where) from error
    except AttributeError as error:
        raise UsageError(f"{section}.class_path cannot be imported ({class_path}: {module_name} has no {name})", where) from error
    except Exception as error:  # the user's module may raise anything at import
        raise UsageError(f"{section}.class_path cannot be imported ({class_path}: {type(error).__name__}: {error})", where) from error
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise UsageError(
            f"{section}.class_path is of the wrong kind ({class_path})", f"Name a subclass of {kind.__module__}.{kind.__name__}."
        )
    return found


def _make_importable(directory: Path) -> None:
    # The installed command does not have the working directory on its path, `python -m` does. Last, so that it hides nothing.
    if str(directory) not in sys.path and "" not in sys.path:
        sys.path.append(str(directory))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
