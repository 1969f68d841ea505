"""The float32 model before it was made into anything: its size and its graph, which a variant's are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from torch import nn

from training.export.exporter import ONNX_FILE, ExportContext
from training.export.onnx_graph import graph_facts


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """What a variant is smaller or larger than.

    Attributes:
        weights_bytes: Parameters and buffers in float32; the size of the given files for a model that has none.
        operators: Operator -> number of nodes of the float32 ONNX graph; None if none was made.
        graph: Its file.
    """

    weights_bytes: int
    operators: Mapping[str, int] | None = None
    graph: Path | None = None


def baseline_of(model: nn.Module, context: ExportContext) -> Baseline:
    """Of a model whose exporters share a context; after an export, so that the graph is there."""
    graph = context.scratch / "fp32" / ONNX_FILE
    made = graph.is_file()
    weights = sum(tensor.numel() * 4 for tensor in chain(model.parameters(), model.buffers()))
    if weights == 0 and context.given_graph is not None:
        given = context.given_graph
        weights = sum(file.stat().st_size for file in given.parent.glob(f"{given.name}*"))
    return Baseline(
        weights_bytes=weights,
        operators=graph_facts(graph)["operators"] if made else None,
        graph=graph if made else None,
    )
