"""Names of models, versions, channels and variants, and how they are written.

A version is written `digits/3`, a channel's version `digits@production`, as in MLflow model URIs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from registry.errors import UsageError

PRODUCTION = "production"
_MAX_VERSION = 2**31 - 1  # what every database of a registry can hold

# TorchServe's model name pattern, within MLflow's (no "/" and ":").
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
# Lower case, as MLflow aliases that look like versions ("v1") or "latest" are reserved there.
_CHANNEL = re.compile(r"(?!latest$)(?!v\d+$)[a-z][a-z0-9_-]{0,49}")
_VERSION = re.compile(r"[0-9]{1,10}")
_VARIANT = re.compile(r"[a-z0-9][a-z0-9-]{0,49}")


def check_model_name(name: str) -> str:
    """Return `name` if it can name a model everywhere (MLflow, TorchServe, URLs), else raise UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"invalid model name ({name!r})", "Use letters, digits, '_', '.', '-', at most 100, starting with one of the first two."
        )
    return name


def check_channel(channel: str) -> str:
    """Return `channel` if it is a valid channel name, else raise UsageError."""
    if not _CHANNEL.fullmatch(channel):
        raise UsageError(
            f"invalid channel ({channel!r})", "Use lower-case letters, digits, '_', '-', for example 'production' or 'staging'."
        )
    return channel


def check_variant(variant: str) -> str:
    """Return `variant` if it is a well-formed variant name, else raise UsageError."""
    if not _VARIANT.fullmatch(variant):
        raise UsageError(f"invalid variant ({variant!r})", "Use a name that `modelway export` lists, for example 'onnx-fp32'.")
    return variant


@dataclass(frozen=True, order=True, slots=True)
class ModelVersion:
    """One registered model version; it never changes. `str()` gives `digits/3`."""

    model: str
    version: int

    def __post_init__(self) -> None:
        check_model_name(self.model)
        if not 1 <= self.version <= _MAX_VERSION:
            raise UsageError(f"invalid version ({self.version})", "Versions count from 1.")

    def __str__(self) -> str:
        return f"{self.model}/{self.version}"


@dataclass(frozen=True, slots=True)
class ModelAlias:
    """The version that an alias (a channel) points to now. `str()` gives `digits@production`."""

    model: str
    channel: str

    def __post_init__(self) -> None:
        check_model_name(self.model)
        check_channel(self.channel)

    def __str__(self) -> str:
        return f"{self.model}@{self.channel}"


def parse_model_ref(text: str) -> ModelVersion | ModelAlias:
    """Parse `digits/3`, `digits@production` or the same behind `models:/`.

    Raises:
        UsageError: If `text` is neither.
    """
    bare = text.removeprefix("models:/")
    if "@" in bare:
        model, _, channel = bare.partition("@")
        return ModelAlias(model, channel)
    model, _, version = bare.partition("/")
    if not _VERSION.fullmatch(version):
        raise UsageError(f"not a model version ({text!r})", "Write MODEL/VERSION, for example digits/3.")
    return ModelVersion(model, int(version))


def parse_model_version(text: str) -> ModelVersion:
    """Parse `digits/3`. Raises UsageError for anything else, an alias included."""
    ref = parse_model_ref(text)
    if isinstance(ref, ModelAlias):
        raise UsageError(f"an exact version is needed, not an alias ({text!r})", "Write MODEL/VERSION, for example digits/3.")
    return ref
