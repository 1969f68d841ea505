"""What flows through a float32 graph on calibration rows: ranges by three methods, and moments of what meets each weight.

One pass over the rows gives all of it. Ranges are computed by ONNX Runtime's own collectors.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization.calibrate import (  # type: ignore[import-untyped]
    CalibrationMethod,
    HistogramCollector,
    TensorsData,
    create_calibrator,
    save_tensors_data,
)
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry  # type: ignore[import-untyped]

from training.data.batches import Array, Rows
from training.export.quantization.products import products

Method = Literal["minmax", "entropy", "percentile"]
METHODS: Mapping[Method, CalibrationMethod] = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
PERCENTILE = 99.99
_BATCH_BYTES = 128_000_000  # of all activations of a batch together
_MAX_BATCH = 64
_SAMPLES_PER_COLUMN = 8  # positions that a second moment of K columns is estimated from
_MIN_SAMPLES, _MAX_SAMPLES = 1024, 8192
_MAX_HISTOGRAM = 50_000  # values per tensor and batch
_MAX_GROWTH = 8  # of the number of bins of a histogram
_MAX_COLUMNS = 2048  # a second moment of more would be 32 MB and more, and its inverse seconds


@dataclass(kw_only=True, slots=True)
class Moments:
    """Sums over sampled positions of the K numbers that each of G groups of a weight's rows is multiplied with.

    Attributes:
        count: Number of positions.
        total: Their sum, [G, K].
        square: Sum of outer products, [G, K, K]; None where K is too large.
    """

    count: int = 0
    total: Array = field(default_factory=lambda: np.zeros(()))
    square: Array | None = field(default_factory=lambda: np.zeros(()))

    @property
    def mean(self) -> Array:
        """[G, K]."""
        return np.asarray(self.total / self.count)

    def add(self, samples: Array) -> None:
        """Add samples [G, positions, K]."""
        self.count += samples.shape[1]
        self.total = self.total + samples.sum(axis=1, dtype=np.float64)
        if samples.shape[2] > _MAX_COLUMNS:
            self.square = None
        elif self.square is not None:
            self.square = self.square + np.matmul(samples.transpose(0, 2, 1), samples).astype(np.float64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Statistics:
    """What the pass found.

    Attributes:
        ranges: Method -> file of ranges, as `quantize_static` reads them.
        moments: Name of a node -> moments of its data.
    """

    ranges: Mapping[Method, Path]
    moments: Mapping[str, Moments]


def measure_statistics(path: Path, rows: Rows, into: Path) -> Statistics:
    """Run a prepared graph on rows; files are written into the existing directory `into`. Deterministic."""
    op_types = sorted({*QLinearOpsRegistry, *QDQRegistry})
    # Upstream prints its settings, and divides by zero where a tensor is nothing but zeros.
    with contextlib.redirect_stdout(io.StringIO()), np.errstate(divide="ignore", invalid="ignore"):
        calibrator = create_calibrator(path, op_types, str(into / "augmented.onnx"), calibrate_method=CalibrationMethod.Percentile)
        collectors = (
            HistogramCollector("entropy", symmetric=False, num_bins=128, num_quantized_bins=128, percentile=None, scenario=None),
            HistogramCollector("percentile", symmetric=False, num_bins=2048, num_quantized_bins=None, percentile=PERCENTILE, scenario=None),
        )
        graph = onnx.load(path)
        tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
        found = products(graph.graph, tensors)
        moments = {product.node: Moments() for product in found}
        generator = np.random.default_rng(0)
        per_row = {product.node: _positions_per_row(product.as_matrices(tensors[product.weight]).shape[2], len(rows)) for product in found}
        for values in _activations(calibrator.infer_session, rows):
            thinned = {name: _thinned(values[name]) for name in calibrator.tensors_to_calibrate}
            for collector in collectors:
                _make_room(collector, thinned)
                collector.collect({name: [array] for name, array in thinned.items()})
            for product in found:
                if product.data in values:
                    moments[product.node].add(product.samples(values[product.data], per_row[product.node], generator))
        ranges = _ranges(*collectors)
    files: dict[Method, Path] = {}
    for method, data in ranges.items():
        files[method] = into / f"{method}.json"
        save_tensors_data(TensorsData(METHODS[method], data), files[method])
    return Statistics(ranges=files, moments={name: item for name, item in moments.items() if item.count})


def _positions_per_row(num_columns: int, num_rows: int) -> int:
    return -(-int(np.clip(_SAMPLES_PER_COLUMN * num_columns, _MIN_SAMPLES, _MAX_SAMPLES)) // num_rows)


def _thinned(values: Array) -> Array:
    """Some of the values, evenly spread, and the two extremes: a histogram of millions tells little more, and is most of the time."""
    flat = values.reshape(-1)
    if flat.size <= _MAX_HISTOGRAM:
        return flat
    return np.append(flat[:: flat.size // _MAX_HISTOGRAM | 1], [flat.min(), flat.max()]).astype(values.dtype)


def _make_room(collector: Any, arrays: Mapping[str, Array]) -> None:
    """Make bins coarser where the values of a batch lie far beyond those before.

    The collector keeps the width of its first bins, which come from one row: after a row of silence there would be millions of bins,
    and the entropy of n bins takes n squared steps.
    """
    for name, array in arrays.items():
        counts, edges, low, high, limit = collector.histogram_dict.get(name, (None, None, None, None, 0.0))
        if not limit:
            continue
        wanted = max(limit, float(np.abs(array).max(initial=0)))
        if len(counts) * wanted / limit > _MAX_GROWTH * collector.num_bins:
            centres = (edges[:-1] + edges[1:]) / 2
            coarse, borders = np.histogram(centres, collector.num_bins, range=(-wanted, wanted), weights=counts)
            collector.histogram_dict[name] = (
                coarse.astype(counts.dtype),
                borders.astype(edges.dtype),
                low,
                high,
                np.array(wanted, edges.dtype),
            )


def _ranges(entropy: Any, percentile: Any) -> dict[Method, Any]:
    extremes = {name: (np.array(found[2]), np.array(found[3])) for name, found in percentile.histogram_dict.items()}
    return {
        "minmax": extremes,
        "entropy": entropy.compute_collection_result(),
        "percentile": percentile.compute_collection_result(),
    }


def _activations(session: Any, rows: Rows) -> Iterator[dict[str, Array]]:
    """Every output of the session, batch by batch; the first batch is one row and tells how many fit into memory."""
    names = [output.name for output in session.get_outputs()]
    start, size = 0, 1
    while start < len(rows):
        inputs = rows.take(slice(start, start + size))
        # An output that is an input would share its memory: https://github.com/microsoft/onnxruntime/issues/21922
        values = {name: value.copy() if name in inputs else value for name, value in zip(names, session.run(None, inputs), strict=True)}
        yield values
        start += size
        size = int(np.clip(_BATCH_BYTES // max(1, sum(value.nbytes for value in values.values()) // size), 1, _MAX_BATCH))
