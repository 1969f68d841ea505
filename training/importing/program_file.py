"""A torch.export program as a source: shown to hold no program but its graph, opened, and saved again without examples.

torch.export.load unpickles what it cannot read otherwise, calls `sympify` on the sizes of symbolic dimensions, which
evaluates them as Python, and loads compiled libraries. So an archive is opened only if
- every weight is listed as raw bytes, and every other record is JSON, a short text or a set of tensors that torch's
  restricted loader accepts,
- every symbolic size is arithmetic on symbols and torch's own functions.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from registry.errors import Refused, UsageError
from training.data.batches import Array
from training.importing.adapted import Face
from training.importing.brought import Brought
from training.importing.request import ImportRequest
from training.importing.sample import Sample, in_order
from training.importing.unpickling import refuse_pickle, unpickle_program
from training.quiet import treespec_notice_hidden
from training.source.imported import model_file
from training.source.modules import ProgramModule
from training.source.trained import export_program

_TEXT = re.compile(rb"[A-Za-z0-9._-]{1,64}\n?")
_CONFIG = re.compile(r"(?:^|/)data/(?:weights|constants)/[^/]+_config\.json$")
_RAW = ("weight_", "tensor_")  # records that are read as bytes; any other name is unpickled whatever the config says
_SIZE = re.compile(r"[\w\s+\-*/%(),<>=&|~.]*", re.ASCII)
_SYMBOL = re.compile(r"Symbol\('[A-Za-z]\w*'(, [a-z]+=(True|False))*\)", re.ASCII)
_CALL = re.compile(r"([A-Za-z_]\w*)\s*\(")
# What torch writes into sizes, besides symbols and operators.
_FUNCTIONS = re.compile(
    r"Add|Mul|Pow|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|IntTrueDiv|FloatTrueDiv|ModularIndexing|Where|Abs|"
    r"Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|Integer|Rational|floor|ceiling|CeilToInt|FloorToInt|TruncToInt|RoundToInt|ToFloat"
    r"|Identity|LShift|RShift"
)
_STATIC = "Export it again with two or more rows and a dynamic first dimension."


def bring_program(request: ImportRequest, sample: Sample, into: Path) -> Brought:
    """Check a `.pt2` file and write it as `data/model.pt2`, without example inputs.

    Raises:
        UsageError: Not a program, its batch is fixed, or the sample has other inputs.
        Refused: It holds pickles.
    """
    program = open_program(request.file)
    names = program_inputs(program)
    wanted = tuple(name for name in names if name not in request.adaptation.fixed)
    inputs = in_order(sample.named(wanted), wanted, what=request.file.name)
    if request.adaptation:
        module = _Named(request.file, names)
        face = Face(module, inputs=wanted, outputs=request.export.outputs, adaptation=request.adaptation)
        example = {name: torch.from_numpy(array[:4].copy()) for name, array in inputs.items()}
        program = export_program(face, example, dynamic=request.export.dynamic)
    return Brought(kind="program", inputs=inputs, outputs=request.export.outputs, facts=save_program(program, into))


def bring_pickled_module(request: ImportRequest, sample: Sample, into: Path, *, code: Path | None = None) -> Brought:
    """A pickled module as a program, made in a process of its own; see `training.importing.unpickling`.

    Raises:
        Refused: It was not allowed.
        UsageError: It is no module, or cannot be captured.
    """
    if not request.allow_pickle:
        raise refuse_pickle(request.file)
    if len(sample) < 2:
        raise UsageError(f"one row cannot show where the batch is ({request.sample.name})", "Give a sample of two rows or more.")
    made = into / "unpickled.pt2"
    try:
        names, outputs = unpickle_program(
            request.file,
            made,
            sample=dataclasses.replace(sample, inputs={name: array[:4] for name, array in sample.inputs.items()}),
            outputs=request.export.outputs,
            adaptation=request.adaptation,
            dynamic=request.export.dynamic,
            code=code,
        )
        facts = save_program(open_program(made), into)
    finally:
        made.unlink(missing_ok=True)
    sample = sample.named(names)
    inputs: dict[str, Array] = {name: sample.inputs[name] for name in names}
    return Brought(kind="program", inputs=inputs, outputs=_named(outputs, request), facts={**facts, "unpickled": True})


def open_program(file: Path) -> ExportedProgram:
    """A program from elsewhere. Raises UsageError, Refused; see the module's docstring for what is refused."""
    if not zipfile.is_zipfile(file):
        raise UsageError(f"not a torch.export program ({file})", "Save it with torch.export.save.")
    with zipfile.ZipFile(file) as archive:
        for record in _unsafe_records(archive):
            raise refuse_pickle(file, f"record {record} is not plain data")
        for size in _sizes_of(archive):
            if not _is_arithmetic(size):
                raise Refused(
                    f"a symbolic size of the program is not arithmetic ({file}: {size[:80]!r})", "Do not load this file anywhere."
                )
    try:
        with treespec_notice_hidden():
            program = torch.export.load(file)
    except Exception as error:  # torch raises anything for a broken archive
        reason = " ".join(str(error).split())[:300]
        raise UsageError(
            f"not a torch.export program ({file}: {type(error).__name__}: {reason})", "Save it with torch.export.save."
        ) from error
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs:
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor) and (value.ndim == 0 or isinstance(value.shape[0], int)):
                raise UsageError(f"the batch dimension of the program's input {node.name} is fixed ({list(value.shape)})", _STATIC)
    return program


def program_inputs(program: ExportedProgram) -> tuple[str, ...]:
    """Names of what the program takes, in order."""
    return tuple(str(name) for name in program.graph_signature.user_inputs)


def save_program(program: ExportedProgram, into: Path) -> dict[str, Any]:
    """Write the program into the source directory without example inputs, which would be pickled; returns facts of it."""
    program.example_inputs = None
    file = model_file(into, "program")
    file.parent.mkdir(parents=True, exist_ok=True)
    with treespec_notice_hidden():
        torch.export.save(program, file)
    return {"parameters": sum(p.numel() for p in program.parameters())}


def _unsafe_records(archive: zipfile.ZipFile) -> Iterator[str]:
    infos = [info for info in archive.infolist() if not info.is_dir()]
    raw = {record for info in infos if _CONFIG.search(info.filename) for record in _raw_records(info.filename, archive.read(info))}
    for info in infos:
        if info.filename not in raw and not _is_plain(archive.read(info)):
            yield info.filename


def _raw_records(config: str, content: bytes) -> Iterator[str]:
    """The records that a config of weights lists as bytes."""
    parsed = _json(content)
    entries = parsed.get("config") if isinstance(parsed, dict) else None
    for entry in entries.values() if isinstance(entries, dict) else ():
        name = entry.get("path_name") if isinstance(entry, dict) else None
        if isinstance(name, str) and "/" not in name and name.startswith(_RAW) and entry.get("use_pickle") is False:
            yield f"{config.rsplit('/', 1)[0]}/{name}"


def _is_plain(content: bytes) -> bool:
    """Whether torch.export.load would run nothing that is in the record."""
    if not content or _TEXT.fullmatch(content) or _json(content) is not None:
        return True
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # whatever it is, it is not a set of tensors
        return False
    return True


def _json(content: bytes) -> Any:
    try:
        return json.loads(content.decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError):
        return None


def _sizes_of(archive: zipfile.ZipFile) -> Iterator[str]:
    """Every text that torch.export.load will evaluate as a size."""
    for name in archive.namelist():
        if name.endswith(".json"):
            yield from _values_of(_json(archive.read(name)), "expr_str")


def _values_of(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get(key), str):
            yield value[key]
        for item in value.values():
            yield from _values_of(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from _values_of(item, key)


def _is_arithmetic(size: str) -> bool:
    """Whether a size is made of numbers, symbols, operators and torch's own functions, and of nothing that Python could do more with.

    >>> _is_arithmetic("Mul(Integer(2), Symbol('s31', positive=True, integer=True))"), _is_arithmetic("exit(1)")
    (True, False)
    """
    size = _SYMBOL.sub("s", size)
    attribute = re.search(r"\.\s*[A-Za-z_]|__", size)
    return _SIZE.fullmatch(size) is not None and attribute is None and all(_FUNCTIONS.fullmatch(name) for name in _CALL.findall(size))


def _named(outputs: tuple[str, ...], request: ImportRequest) -> tuple[str, ...] | None:
    """The names that the module gives its outputs, where they are not just numbers: then the usual names are better."""
    unnamed = outputs == ("prediction",) or outputs == tuple(f"output_{index}" for index in range(len(outputs)))
    return request.export.outputs if unnamed else outputs


class _Named(torch.nn.Module):
    """A program that can be called by name."""

    def __init__(self, file: Path, names: tuple[str, ...]) -> None:
        super().__init__()
        self.program = ProgramModule(file)
        self.names = names

    def forward(self, **tensors: torch.Tensor) -> object:
        return self.program(*(tensors[name] for name in self.names))
