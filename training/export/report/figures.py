"""The figures of an export's report, as SVG elements that stand inside an HTML page. Drawn by Matplotlib, without its global state.

The same values give the same bytes. Names are drawn as they are: a dollar sign in one is no formula.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from training.data.batches import Array
from training.export.report.calibration import Reliability

_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
_IDS = re.compile(r"""(\bid="|href="\#|url\(\#)""")
_NAMESPACES = re.compile(r''' xmlns(?::\w+)?="[^"]*"''')
_MARKERS = "osD^vP*Xp"
_WIDE = 100  # an axis of more than two decades has room for their powers only
_MAX_NAMED_LAYERS = 16
_NAME_CHARACTERS = 20
_MAX_OUTPUTS = 6
_NUM_QUANTILES = 400
_SMALLEST_ERROR = 1e-9  # an error of nothing has no place on a logarithmic axis


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One variant in a plot of quality against a cost.

    Attributes:
        name: The variant.
        cost: Milliseconds or kilobytes, above 0.
        quality: On the held-out rows.
        low: Lower end of its interval, paired with the eager model; the upper end is `high`.
        passed: Whether its certificate passes.
        chosen: Whether it is the choice.
    """

    name: str
    cost: float
    quality: float
    low: float
    high: float
    passed: bool
    chosen: bool


def quality_against(points: Sequence[Point], *, cost: str, quality: str, eager: float, budget: float | None) -> str:
    """Quality over a cost on a logarithmic axis: hollow is failed, a ring is the choice, lines are the eager model and its budget."""
    with _figure(7.2, 3.6) as figure:
        _quality_axes(figure.add_subplot(), points, cost=cost, quality=quality, eager=eager, budget=budget)
        return _svg(figure)


def _quality_axes(axes: Axes, points: Sequence[Point], *, cost: str, quality: str, eager: float, budget: float | None) -> None:
    axes.axhline(eager, color="0.4", linewidth=1, label="eager float32")
    if budget is not None:
        axes.axhline(eager - budget, color="tab:red", linewidth=1, linestyle="--", label="budget")
    for index, point in enumerate(points):
        color = f"C{index % 10}"
        error = [[max(point.quality - point.low, 0.0)], [max(point.high - point.quality, 0.0)]]
        face = color if point.passed else "white"
        marker = _MARKERS[index % len(_MARKERS)]
        axes.errorbar([point.cost], [point.quality], yerr=error, fmt=marker, color=color, markerfacecolor=face, capsize=3, label=point.name)
        if point.chosen:
            axes.plot([point.cost], [point.quality], "o", markersize=14, markerfacecolor="none", markeredgecolor="0.2")
    _logarithmic(axes)
    axes.margins(x=0.15, y=0.2)
    axes.set(xlabel=cost, ylabel=quality)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


def error_distributions(errors: Mapping[str, Mapping[str, Array]]) -> str:
    """For each output the share of values with an error up to x.

    Args:
        errors: Output -> variant -> errors as fractions of the output's peak, any shape; not finite ones count as larger than all.
    """
    shown = list(errors.items())[:_MAX_OUTPUTS]
    columns = min(len(shown), 2)
    rows = -(-len(shown) // columns)
    with _figure(5.6 * columns, 3.4 * rows) as figure:
        for index, (output, by_variant) in enumerate(shown):
            axes = figure.add_subplot(rows, columns, index + 1)
            for variant, values in by_variant.items():
                _cumulative(axes, variant, values)
            _logarithmic(axes)
            axes.set(title=output, xlabel="error / largest value of the output", ylabel="share of values", ylim=(0, 1.02))
            axes.legend(loc="best")
        return _svg(figure)


def layer_errors(by_variant: Mapping[str, Mapping[str, float]]) -> str:
    """Error of each layer of quantized variants, in the order of the float32 graph.

    Args:
        by_variant: Variant -> layer -> mean error as a fraction of the layer's largest value.
    """
    layers = list(dict.fromkeys(layer for errors in by_variant.values() for layer in errors))
    with _figure(7.2, 3.6) as figure:
        axes = figure.add_subplot()
        for index, (variant, errors) in enumerate(by_variant.items()):
            places = [layers.index(layer) for layer in errors]
            shown = [max(error, _SMALLEST_ERROR) for error in errors.values()]
            axes.plot(places, shown, marker=_MARKERS[index % len(_MARKERS)], markersize=4, label=variant)
        axes.set_yscale("log")
        _plain(axes.yaxis)
        named = len(layers) <= _MAX_NAMED_LAYERS
        axes.set(xlabel="layer", ylabel="mean error / largest value of the layer")
        if named:
            axes.set_xticks(range(len(layers)), [_end_of(layer) for layer in layers], rotation=45, ha="right")
        axes.legend(loc="best")
        return _svg(figure)


def _end_of(name: str) -> str:
    """What tells layers apart is at the end of their names."""
    return name if len(name) <= _NAME_CHARACTERS else f"...{name[-_NAME_CHARACTERS:]}"


def reliability_diagram(by_name: Mapping[str, Reliability]) -> str:
    """Accuracy over confidence; the diagonal is a model that means what it says."""
    with _figure(5.6, 4.2) as figure:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
        for name, found in by_name.items():
            axes.plot(found.confidence, found.accuracy, marker="o", markersize=4, label=f"{name} (ECE {found.error:.4f})")
        axes.set(xlabel="confidence of the predicted class", ylabel="share of rows that are right", xlim=(0, 1.02), ylim=(0, 1.02))
        axes.legend(loc="best")
        return _svg(figure)


def _cumulative(axes: Axes, label: str, values: Array) -> None:
    flat = np.where(np.isfinite(values), values, np.inf).ravel()
    shares = np.linspace(0, 1, _NUM_QUANTILES)
    errors = np.quantile(flat, shares, method="inverted_cdf")
    finite = np.isfinite(errors)
    axes.plot(np.maximum(errors[finite], _SMALLEST_ERROR), shares[finite], label=label)


def _logarithmic(axes: Axes) -> None:
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < _WIDE * low else (1,)))
    _plain(axes.xaxis)


def _plain(axis: Axis) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # Matplotlib's own writes formulas
    axis.set_minor_formatter(NullFormatter())


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    # Read when a text is made, and again when it is drawn.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "modelway", "text.parse_math": False, "font.size": 9}):
        yield Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Figure) -> str:
    """The `svg` element alone, with ids of its own, for several stand on one page, and without the names of XML that HTML knows."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=_NO_METADATA)
    drawn = buffer.getvalue()
    prefix = f"f{hashlib.sha256(drawn.encode()).hexdigest()[:8]}-"
    drawn = _IDS.sub(lambda found: f"{found[1]}{prefix}", drawn[drawn.index("<svg") :])
    return _NAMESPACES.sub("", drawn).replace("xlink:href=", "href=")
