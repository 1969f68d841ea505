"""Exporters with a fault in them, and small models to certify: what test_certify and test_planted_faults share."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from registry.certificate import Certificate
from registry.names import ModelVersion
from training.data.batches import Rows
from training.evaluate import predict
from training.export.catalog import EXPORTERS
from training.export.certificate.certify import Measured, certify, failed_export
from training.export.certificate.reference import Reference
from training.export.exporter import ExportContext
from training.interface import infer_signature

VERSION = ModelVersion("digits", 1)


def every_variant() -> list:
    """Every exporter as a parameter of a test; the one that runs a C++ compiler for ten seconds with the integration tests."""
    slow = (pytest.mark.integration,)
    return [pytest.param(exporter, id=exporter.name, marks=slow if exporter.name == "aoti" else ()) for exporter in EXPORTERS]


class Planted:
    """An exporter with a fault: the real one writes the files, then `damage` changes them."""

    def __init__(self, exporter, damage: Callable[[Path], None]):
        self.name, self.limits, self.inspect, self.unfit = exporter.name, exporter.limits, exporter.inspect, exporter.unfit
        self._exporter, self._damage = exporter, damage

    def export(self, model, context, into):
        self._exporter.export(model, context, into)
        self._damage(into)


class OfAnother:
    """An exporter that exports another model than the one that is certified, or from another context."""

    def __init__(self, exporter, model, **changes):
        self.name, self.limits, self.unfit = exporter.name, exporter.limits, exporter.unfit
        self._exporter, self._model, self._changes = exporter, model, changes

    def export(self, model, context, into):
        other = into.parent / "other"
        other.mkdir()
        self._exporter.export(self._model, dataclasses.replace(context, scratch=other, **self._changes), into)

    def inspect(self, directory, model, context):
        return self._exporter.inspect(directory, model, context)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """A model, what it answers, and what exporters work with."""

    model: torch.nn.Module
    reference: Reference
    context: ExportContext

    def measured(self, exporter, directory: Path, **changes) -> Measured:
        """Export, inspect and certify; `changes` are arguments of `certify`."""
        directory.mkdir()
        common = {"version": VERSION, "source_sha256": "0" * 64, "variant": exporter.name, "reference": self.reference}
        try:
            exporter.export(self.model, self.context, directory)
            inspection = exporter.inspect(directory, self.model, self.context)
        except Exception as error:
            return failed_export(error, **common)
        arguments = {"limits": exporter.limits, "accuracy_drop": 0.01, "inspection": inspection, **common, **changes}
        return certify(directory, **arguments)


def subject(
    model: torch.nn.Module,
    inputs: Mapping[str, np.ndarray],
    scratch: Path,
    *,
    task="regression",
    dynamic: Mapping[str, tuple[int, ...]] | None = None,
) -> Subject:
    """A model that is right by definition: its own answers are the targets."""
    scratch.mkdir()
    outputs = predict(model, inputs, outputs=None, task=task)
    first = next(iter(outputs.values()))
    rows = Rows(inputs=inputs, target=first.argmax(-1) if task == "classification" else first)
    example = {name: torch.from_numpy(array[:4]) for name, array in inputs.items()}

    def ask(cut):
        return predict(model, cut, outputs=None, task=task)

    signature = infer_signature(
        example,
        {name: torch.from_numpy(array[:4]) for name, array in outputs.items()},
        dynamic=dynamic,
        ask=lambda tensors: {n: torch.from_numpy(a) for n, a in ask({n: t.numpy() for n, t in tensors.items()}).items()},
    )
    reference = Reference(signature=signature, rows=rows, outputs=outputs, task=task, labelled=False, ask=ask)
    context = ExportContext(signature=signature, example=example, calibration=rows, task=task, scratch=scratch)
    return Subject(model=model, reference=reference, context=context)


def failed(certificate: Certificate) -> set[str]:
    """Names of the checks that failed; the certificate must not pass."""
    assert not certificate.passed
    return {check.name for check in certificate.checks if not check.passed}


def edit_graph(edit: Callable[[onnx.ModelProto], None]) -> Callable[[Path], None]:
    """Damage for `Planted`: change the ONNX graph in the directory."""

    def damage(directory: Path) -> None:
        graph = onnx.load(directory / "model.onnx")
        edit(graph)
        onnx.save(graph, directory / "model.onnx")

    return damage


def edit_tensor(graph: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change one weight of a graph."""
    for tensor in graph.graph.initializer:
        if tensor.name == name:
            array = numpy_helper.to_array(tensor).copy()
            tensor.CopyFrom(numpy_helper.from_array(change(array), name))
            return
    raise AssertionError(f"no tensor {name}")


def sort_nodes(graph: onnx.ModelProto) -> None:
    """Topological order, which ONNX demands."""
    known = {v.name for v in graph.graph.input} | {t.name for t in graph.graph.initializer} | {""}
    nodes, ordered = list(graph.graph.node), []
    while nodes:
        ready = next(node for node in nodes if set(node.input) <= known)
        nodes.remove(ready)
        known |= set(ready.output)
        ordered.append(copy.deepcopy(ready))
    del graph.graph.node[:]
    graph.graph.node.extend(ordered)
