"""Variant `onnx-int8-static`: weights and activations in 8 bits, ranges measured on training rows.

Quantize/dequantize pairs (QDQ), one scale per channel, made by ONNX Runtime after its shape inference and fusion. What it is given
are weights that are already rounded with regard to the data (`weight_rounding`), and ranges by the method that was best
(`quantization_search`); what was chosen is written into the graph's metadata.
Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static  # type: ignore[import-untyped]
from torch import nn

from registry.certificate import Check
from training.data.batches import Array, Rows
from training.export.exporter import ONNX_FILE, ExportContext, Inspection, Limits
from training.export.onnx_graph import graph_facts
from training.export.onnx_session import answers
from training.export.quantization.activation_ranges import clipped_share
from training.export.quantization.activation_statistics import METHODS, Method, Statistics, measure_statistics
from training.export.quantization.onnx_quantized import (
    HEAVY,
    count_quantized,
    least_quantized,
    notes_of,
    prepared_graph,
    quantized_nodes_check,
    set_notes,
    weights_check,
)
from training.export.quantization.search import Score, for_few_judges, score, search, split
from training.export.quantization.weight_rounding import rounded_biases, rounded_graph
from training.quiet import errors_only

_SENSITIVITY_ROWS = 32
# The weights lie on the grid already, so that nothing is left to round; half a step where onnxruntime widens a channel's grid for its bias.
_MAX_STEPS_FROM_ROUNDED = 0.51
# A step to a neighbour, and half a step to the grid of the quantizer, where it takes larger steps than ours: for a channel of next to
# nothing, whose bias would not fit into 32 bits otherwise. A changed bit shows against the rounded weights, to half a step.
_MAX_STEPS_FROM_FLOAT32 = 1.51
# Seen: 0 on digits with min-max ranges, under 0.05 on a perceptron; 0.42 where the calibration rows were all zeros.
_MAX_CLIPPED_SHARE = 0.1


class OnnxInt8Static:
    """Static QDQ int8 for CPUs.

    Weights use 7 of their 8 bits (`reduce_range`): without VNNI instructions the CPU adds pairs of products in 16 bits, which
    saturate, and a bundle does not know on which CPU it will run.
    """

    name = "onnx-int8-static"
    # Parity of 8 bits is a matter of agreement, accuracy and the mean. One row with activations beyond the calibrated range
    # is clipped and may be far off: measured on digits of 15 seeds and widths, 0.03 to 0.21 at most and 0.001 to 0.003 on average.
    limits: Limits = Limits(max_error=0.25, mean_error=0.01, row_error=0.01, min_agreement=0.97, follows_budget=True)

    def unfit(self, model: nn.Module, context: ExportContext) -> str | None:
        """On CUDA 8 bits are slow or missing."""
        return None if context.target == "cpu" else "8 bits are slow or missing on CUDA"

    def export(self, model: nn.Module, context: ExportContext, into: Path) -> None:
        """Search, and write `model.onnx`."""
        work = Workshop(model=model, context=context)
        heavy = [node.name for node in onnx.load(work.prepared, load_external_data=False).graph.node if node.op_type in HEAVY]
        choice = search(
            tuple(METHODS),
            work.trial,
            lambda method: work.sensitive_first(method, heavy),
            max_excluded=len(heavy) - least_quantized(len(heavy)),
            limits=for_few_judges(self.limits.within(context.accuracy_drop), num_judges=len(work.rows[1])),
            accuracy_drop=context.accuracy_drop,
        )
        work.quantize(choice.method, choice.excluded, into / ONNX_FILE)
        graph = onnx.load(into / ONNX_FILE, load_external_data=False)
        set_notes(graph, {"calibration": choice.method, "excluded_nodes": json.dumps(choice.excluded)})
        onnx.save(graph, into / ONNX_FILE)

    def inspect(self, directory: Path, model: nn.Module, context: ExportContext) -> Inspection:
        """Checks that the graph is quantized, that its weights are those of the model, rounded, and that its ranges fit data."""
        work = Workshop(model=model, context=context)
        graph, prepared = onnx.load(directory / ONNX_FILE), onnx.load(work.prepared)
        notes = notes_of(graph)
        excluded = tuple(str(name) for name in json.loads(notes.get("excluded_nodes", "[]")))
        rounded = work.rounded(excluded)
        num_heavy = sum(node.op_type in HEAVY for node in prepared.graph.node)
        num_quantized = count_quantized(graph)
        checks = (
            quantized_nodes_check(num_quantized, num_heavy, "/".join(HEAVY)),
            weights_check(
                graph,
                onnx.load(rounded),
                limit=_MAX_STEPS_FROM_ROUNDED,
                detail="difference to the weights as they were rounded for the data, in quantization steps",
            ),
            weights_check(graph, rounded_biases(prepared, rounded), name="weights/max_rounding_steps", limit=_MAX_STEPS_FROM_FLOAT32),
            _varies(context.calibration),
            _clipped(graph, work.prepared, context),
        )
        facts = {
            **graph_facts(directory / ONNX_FILE),
            "calibration_rows": len(context.calibration),
            "calibration": notes.get("calibration", "unknown"),
            "excluded_nodes": list(excluded),
            "quantized_nodes": num_quantized,
        }
        return Inspection(checks=checks, facts=facts)


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """One model's candidates. What they share is made once, in the context's scratch directory or in memory."""

    model: nn.Module
    context: ExportContext

    @cached_property
    def prepared(self) -> Path:
        """The float32 graph."""
        return prepared_graph(self.model, self.context)

    @cached_property
    def rows(self) -> tuple[Rows, Rows]:
        """Rows to calibrate on, and rows to judge on."""
        return split(self.context.calibration)

    @cached_property
    def statistics(self) -> Statistics:
        """What flows through the float32 graph on the calibration rows."""
        with errors_only():  # onnxruntime advises through the root logger
            return measure_statistics(self.prepared, self.rows[0], self._directory("statistics"))

    @cached_property
    def expected(self) -> Sequence[Array]:
        """The float32 graph's answers to the judging rows."""
        return answers(self.prepared, self.rows[1].inputs)

    def rounded(self, excluded: tuple[str, ...]) -> Path:
        """The float32 graph with rounded weights, but for those of the excluded nodes."""
        key = hashlib.sha256(json.dumps(sorted(excluded)).encode()).hexdigest()[:16]
        path = self._directory("rounded", key) / ONNX_FILE
        if not path.exists():
            rounded_graph(self.prepared, self.statistics.moments, path, leave=excluded)
        return path

    def quantize(
        self, method: Method, excluded: tuple[str, ...], path: Path, *, only: str | None = None, source: Path | None = None
    ) -> None:
        """Write a candidate.

        Args:
            only: The one node to quantize; None for all that are not excluded.
            source: A float32 graph to quantize in place of the one with rounded weights.
        """
        with errors_only():  # onnxruntime advises through the root logger
            quantize_static(
                source or self.rounded(excluded),
                path,
                None,
                calibration_cache_path=self.statistics.ranges[method],
                calibrate_method=METHODS[method],
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=list(excluded),
                nodes_to_quantize=[only] if only else None,
            )

    def trial(self, method: Method, excluded: tuple[str, ...]) -> Score:
        """Make a candidate and judge it."""
        path = self._directory("trial") / ONNX_FILE
        self.quantize(method, excluded, path)
        judges = self.rows[1]
        return score(self.context.task, self.expected, answers(path, judges.inputs), judges.target)

    def sensitive_first(self, method: Method, nodes: Sequence[str]) -> list[str]:
        """Nodes by the error of the outputs when each alone is quantized, the largest first."""
        path = self._directory("trial") / ONNX_FILE
        some = self.rows[1].take(slice(0, _SENSITIVITY_ROWS))
        errors = {}
        for node in nodes:
            self.quantize(method, (), path, only=node)
            found = answers(path, some)
            errors[node] = float(np.max([np.mean(np.square(a - b[: len(a)])) for a, b in zip(found, self.expected, strict=True)]))
        return sorted(nodes, key=lambda node: -errors[node])

    def _directory(self, *names: str) -> Path:
        path = self.context.scratch.joinpath("int8-static", *names)
        path.mkdir(parents=True, exist_ok=True)
        return path


def _varies(rows: Rows) -> Check:
    varying = [name for name, array in rows.inputs.items() if len(array) > 1 and not (array == array[:1]).all()]
    detail = f"inputs that differ between the {len(rows)} calibration rows, of {len(rows.inputs)}"
    return Check(name="calibration/num_varying_inputs", passed=bool(varying), value=len(varying), limit=1, relation=">=", detail=detail)


def _clipped(graph: onnx.ModelProto, prepared: Path, context: ExportContext) -> Check:
    share, tensor = clipped_share(graph, prepared, {name: value.numpy() for name, value in context.example.items()})
    return Check(
        name="activations/max_clipped_share",
        passed=share <= _MAX_CLIPPED_SHARE,
        value=share,
        limit=_MAX_CLIPPED_SHARE,
        detail=f"values beyond the calibrated range, {len(next(iter(context.example.values())))} held-out rows, tensor {tensor}",
    )
