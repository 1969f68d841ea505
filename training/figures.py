"""Figures of a run, drawn by Matplotlib without a display. Nothing here touches pyplot's global state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from training.data.batches import Array

MAX_CLASSES = 50  # more cells than that cannot be read


def learning_curve(history: Sequence[dict[str, float]], path: Path) -> None:
    """Metrics per epoch as a PNG: losses on the left axis, everything else on the right.

    Args:
        history: Metrics of each epoch, first epoch first.
    """
    figure, axes = _figure(7, 4)
    names = sorted({name for metrics in history for name in metrics})
    losses = [name for name in names if "loss" in name]
    others = [name for name in names if "loss" not in name]
    _lines(axes, history, losses or names, "-")
    axes.set(xlabel="epoch", ylabel="loss" if losses else "metric")
    if losses and others:
        right = axes.twinx()
        _lines(right, history, others, "--")
        right.set_ylabel(", ".join(others))
        right.legend(loc="upper right")
    if names:
        axes.legend(loc="upper left")
    figure.savefig(path)


def confusion(counts: Array, path: Path) -> None:
    """A confusion matrix [classes, classes] as a PNG, counts written into the cells."""
    num_classes = len(counts)
    figure, axes = _figure(1.5 + 0.5 * num_classes, 1.5 + 0.5 * num_classes)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(counts):
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=color)
    axes.set(xlabel="predicted", ylabel="true", xticks=range(num_classes), yticks=range(num_classes))
    figure.savefig(path)


def _lines(axes: Axes, history: Sequence[dict[str, float]], names: Sequence[str], style: str) -> None:
    for name in names:
        points = [(epoch, metrics[name]) for epoch, metrics in enumerate(history, start=1) if name in metrics]
        axes.plot([epoch for epoch, _ in points], [value for _, value in points], style, label=name, marker=".")


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()
