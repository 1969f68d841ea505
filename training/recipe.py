"""A recipe: the YAML file that says which model is trained on which data, for how long, and how it is exported.

    name: digits                    # registered model name
    model: {class_path: my_package.Net, init_args: {width: 32}}
    data:  {class_path: my_package.Data}
    trainer: {max_epochs: 10}
    export: {variants: [onnx-fp32], accuracy_drop: 0.01}

This module reads, overrides and validates; it imports no torch, so that recipes can be listed at once. The classes that a
recipe names are looked up by `training.components`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from registry.errors import NotFound, UsageError
from registry.names import check_model_name, check_variant

_BUILT_IN = Path(__file__).parent / "recipes"
Task = Literal["classification", "regression"]
Target = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ComponentConfig:
    """A class and its arguments.

    Attributes:
        class_path: Dotted path of a class, importable from the environment or from the working directory.
        init_args: Keyword arguments of its constructor.
    """

    class_path: str
    init_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", self.class_path):
            raise UsageError(f"class_path is not the dotted path of a class ({self.class_path!r})", "Write package.module.Class.")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """How a bare `nn.Module` is trained: AdamW under one cycle of the learning rate. A LightningModule brings its own.

    Attributes:
        learning_rate: Peak learning rate.
        weight_decay: Decoupled weight decay.
    """

    learning_rate: float = 3e-3
    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        _require("optimizer.learning_rate", self.learning_rate, self.learning_rate > 0, "a number above 0")
        _require("optimizer.weight_decay", self.weight_decay, self.weight_decay >= 0, "0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerConfig:
    """What of `lightning.Trainer` a recipe may set.

    Attributes:
        max_epochs: Passes over the training data.
        accelerator: `auto`, `cpu` or `gpu`.
        devices: Number of devices.
        precision: As in Lightning, for example `32-true` or `bf16-mixed`.
        gradient_clip_val: Largest gradient norm; none by default.
        accumulate_grad_batches: Batches per optimizer step.
        limit_train_batches: Batches per epoch at most; all by default.
        limit_val_batches: Validation batches at most; all by default.
        deterministic: Whether operations without a deterministic form are refused.
        num_cpu_threads: Threads of torch's CPU operations; one per core by default. For a small model one is faster on a busy
            machine, and makes the weights independent of the number of cores.
    """

    max_epochs: int = 10
    accelerator: str = "auto"
    devices: int = 1
    precision: str = "32-true"
    gradient_clip_val: float | None = None
    accumulate_grad_batches: int = 1
    limit_train_batches: int | None = None
    limit_val_batches: int | None = None
    deterministic: bool = True
    num_cpu_threads: int | None = None

    def __post_init__(self) -> None:
        _require("trainer.max_epochs", self.max_epochs, self.max_epochs >= 1, "1 or more")
        _require("trainer.accelerator", self.accelerator, self.accelerator in {"auto", "cpu", "gpu"}, "auto, cpu or gpu")
        _require("trainer.devices", self.devices, self.devices >= 1, "1 or more")
        threads = self.num_cpu_threads
        _require("trainer.num_cpu_threads", threads, threads is None or threads >= 1, "1 or more, or null")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """Which variants are made, and what they must prove.

    Attributes:
        variants: Names of variants, as `modelway export` lists them; by default all that fit the model and the target.
        target: The device that the variants are for: `cpu` or `cuda`.
        accuracy_drop: How much the held-out metric (accuracy, or R2 for regression) may fall, as a fraction.
        latency_p99_ms: How long one row may take at the 99th percentile, in milliseconds; no goal by default.
        calibration_rows: Training rows that a static quantizer sees.
        held_out_rows: Rows of the test set that certificates are measured on, at most.
        max_relative_error: Variant -> largest absolute error allowed, as a fraction of the largest absolute value of the
            output; replaces the exporter's own limit, and its limit of the mean error in proportion.
        outputs: Names of the outputs, in order; by default `logits` (classification), `prediction` (regression), the keys
            of a dict, or `output_0`, `output_1`.
        dynamic: Input -> its dimensions that are free beside the batch (numbers from 1), for example a sequence's length.
        serving: Directory with `transforms.json` and the files that it names (labels, a tokenizer): what is done to a body before
            the model and to an answer after it. See docs/export.md.
    """

    variants: tuple[str, ...] | None = None
    target: Target = "cpu"
    accuracy_drop: float = 0.01
    latency_p99_ms: float | None = None
    calibration_rows: int = 512
    held_out_rows: int = 2048
    max_relative_error: Mapping[str, float] = field(default_factory=dict)
    outputs: tuple[str, ...] | None = None
    dynamic: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    serving: str | None = None

    def __post_init__(self) -> None:
        if self.variants is not None:
            _require("export.variants", list(self.variants), bool(self.variants), "at least one variant, or null for all that fit")
        for variant in (*(self.variants or ()), *self.max_relative_error):
            check_variant(variant)
        _require("export.target", self.target, self.target in get_args(Target), "cpu or cuda")
        goal = self.latency_p99_ms
        _require("export.latency_p99_ms", goal, goal is None or goal > 0, "milliseconds above 0, or null")
        for name, dimensions in self.dynamic.items():
            fine = bool(dimensions) and all(dimension >= 1 for dimension in dimensions)
            _require(f"export.dynamic.{name}", list(dimensions), fine, "numbers of dimensions, from 1 (0 is the batch)")
        _require("export.accuracy_drop", self.accuracy_drop, 0 <= self.accuracy_drop < 1, "a fraction from 0 to 1")
        _require("export.calibration_rows", self.calibration_rows, self.calibration_rows >= 8, "8 or more")
        _require("export.held_out_rows", self.held_out_rows, self.held_out_rows >= 32, "32 or more")
        for variant, limit in self.max_relative_error.items():
            _require(f"export.max_relative_error.{variant}", limit, 0 < limit < 1, "a fraction between 0 and 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A validated recipe.

    Attributes:
        name: Registered model name.
        model: A `torch.nn.Module` or a `LightningModule`.
        data: A `LightningDataModule` whose batches are `(inputs, target)`; see docs/training.md.
        seed: Of weights, order of batches and augmentation.
        task: What the targets are: class numbers or values.
    """

    name: str
    model: ComponentConfig
    data: ComponentConfig
    seed: int = 0
    task: Task = "classification"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    export: ExportConfig = field(default_factory=ExportConfig)

    def __post_init__(self) -> None:
        check_model_name(self.name)
        _require("seed", self.seed, 0 <= self.seed < 2**32, "a number from 0 to 4294967295")


_SECTIONS: Mapping[str, type] = {
    "model": ComponentConfig,
    "data": ComponentConfig,
    "optimizer": OptimizerConfig,
    "trainer": TrainerConfig,
    "export": ExportConfig,
}


def recipe_names() -> tuple[str, ...]:
    """Names of the built-in recipes, sorted."""
    return tuple(sorted(path.stem for path in _BUILT_IN.glob("*.yaml")))


def load_recipe(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a built-in recipe by name, or a YAML file by path, and apply overrides.

    Args:
        source: A name of `recipe_names()`, or a path (anything with a `/` or ending in `.yaml` or `.yml`).
        overrides: `KEY=VALUE` with dotted keys and YAML values, for example `model.init_args.width=32`.

    Raises:
        NotFound: No such recipe or file; names the recipes there are.
        UsageError: Bad YAML, key or value; names the key, the value and what is allowed.
    """
    return parse_recipe(_read(source), overrides)


def parse_recipe(text: str, overrides: Sequence[str] = ()) -> Recipe:
    """Like `load_recipe`, of the YAML text itself. Raises UsageError."""
    data = _yaml(text, "recipe")
    if not isinstance(data, dict):
        raise UsageError(f"a recipe is a mapping ({type(data).__name__})", f"Write the keys {', '.join(_names(Recipe))}.")
    for override in overrides:
        _override(data, override)
    return _build(data)


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every default written out; `parse_recipe` gives the same recipe again."""
    return yaml.safe_dump(plain_recipe(recipe), sort_keys=False, allow_unicode=True)


def plain_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested dicts, lists and scalars."""
    as_dict: dict[str, Any] = plain(asdict(recipe))
    return as_dict


def parse_export(data: Any) -> ExportConfig:
    """A recipe's section `export` by itself. Raises UsageError."""
    config: ExportConfig = _section("export", ExportConfig, data)
    return config


def _read(source: str) -> str:
    by_path = "/" in source or source.endswith((".yaml", ".yml"))
    path = Path(source).expanduser() if by_path else _BUILT_IN / f"{source}.yaml"
    known = f"Recipes are {', '.join(recipe_names())}, or give the path of a YAML file."
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise NotFound(f"no such recipe ({source!r})", known) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the recipe ({source!r}: {error})", known) from error


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, except that `1e-3` is a number, as in YAML 1.2."""


_Loader.yaml_implicit_resolvers = {key: list(resolvers) for key, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"), list("-+0123456789."))


def _yaml(text: str, what: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506  # derived from SafeLoader
    except yaml.YAMLError as error:
        raise UsageError(f"{what} is not valid YAML ({' '.join(str(error).split())})") from error


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise UsageError(f"not an override ({override!r})", "Write KEY=VALUE, for example trainer.max_epochs=3.")
    *parents, last = path
    for depth, part in enumerate(parents):
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise UsageError(f"{'.'.join(path[: depth + 1])} is a value, not a section ({override!r})", "Set the key itself.")
    data[last] = _yaml(text, f"value of {key}")


def _build(data: Mapping[str, Any]) -> Recipe:
    check_keys("", data, _names(Recipe), required=("name", "model", "data"))
    values: dict[str, Any] = dict(data)
    for section, config in _SECTIONS.items():
        if section in values:
            values[section] = _section(section, config, values[section])
    if "task" in values:
        _require("task", values["task"], values["task"] in get_args(Task), " or ".join(get_args(Task)))
    return Recipe(**{**values, **_typed("", {key: (values[key], hint) for key, hint in (("name", str), ("seed", int)) if key in values})})


def _section(section: str, config: type, data: Any) -> Any:
    _require(section, data, isinstance(data, Mapping), f"a mapping with the keys {', '.join(_names(config))}")
    check_keys(section, data, _names(config), required=("class_path",) if config is ComponentConfig else ())
    hints = get_type_hints(config)
    return config(**_typed(f"{section}.", {key: (value, hints[key]) for key, value in data.items()}))


def _typed(prefix: str, values: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """Values checked against and converted to their type hints by jsonargparse. Raises UsageError."""
    from jsonargparse import ArgumentError, ArgumentParser  # noqa: PLC0415  # not needed to list recipes

    typed = {}
    for key, (value, hint) in values.items():
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--value", type=hint)
        try:
            typed[key] = parser.parse_object({"value": value}).value
        except ArgumentError as error:
            raise UsageError(f"{prefix}{key} has a value of the wrong type ({value!r})", f"Give {_type_name(hint)}.") from error
    return typed


def check_keys(section: str, data: Mapping[str, Any], allowed: Sequence[str], *, required: Iterable[str] = ()) -> None:
    """Raise UsageError for a key that is not allowed, naming the nearest ones, or for a required one that is missing."""
    prefix = f"{section}." if section else ""
    for key in data:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f"Did you mean {prefix}{near[0]}? " if near else ""
            raise UsageError(f"unknown key in the recipe ({prefix}{key})", f"{hint}Allowed are: {', '.join(allowed) or 'none'}.")
    for key in required:
        if data.get(key) is None:
            raise UsageError(f"a key is missing in the recipe ({prefix}{key})", f"Allowed are: {', '.join(allowed)}.")


def _require(key: str, value: Any, condition: bool, allowed: str) -> None:
    if not condition:
        raise UsageError(f"invalid value of {key} ({value!r})", f"Give {allowed}.")


def _names(config: type) -> tuple[str, ...]:
    assert is_dataclass(config)
    return tuple(f.name for f in fields(config))


def _type_name(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", tuple: "a list", Mapping: "a mapping"}
    kinds = [get_origin(kind) or kind for kind in (get_args(hint) if isinstance(hint, UnionType) else (hint,))]
    return " or ".join(names.get(kind, "null" if kind is NoneType else str(kind)) for kind in kinds)


def plain(value: Any) -> Any:
    """Tuples and mappings as the lists and dicts that YAML has."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value
