"""Names for the classes of an output: the best few of each row, with their scores. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .datatypes import Array


class Labels:
    """The names of an output [rows, classes], in the order of the classes.

    Args:
        top_k: Labels of an answer, unless the request says how many.
        activation: `softmax`, `sigmoid` or `none`: what makes scores of the values.
    """

    def __init__(self, names: Sequence[str], *, top_k: int, activation: str) -> None:
        self.names = tuple(names)
        self.top_k = top_k
        self._activation = _ACTIVATIONS[activation]
        # Lists of classes in use have names twice (ImageNet's has two cranes), and an object must not.
        often = Counter(self.names)
        self._keys = [name if often[name] == 1 else f"{name} ({number})" for number, name in enumerate(self.names)]

    def objects(self, rows: Array) -> list[dict[str, float]]:
        """One object of label and score for each row, the best first; as TorchServe's own classifiers answer."""
        return [{self._keys[index]: score for score, index in row} for row in self._best(rows, self.top_k)]

    def classification(self, rows: Array, k: int) -> Array:
        """Texts `score:index:label`, [rows, min(k, classes)], the best first.

        https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_classification.md
        """
        texts = [[f"{score:.6g}:{index}:{self.names[index]}" for score, index in row] for row in self._best(rows, k)]
        array = np.empty((len(texts), min(k, len(self.names))), dtype=object)
        for number, row in enumerate(texts):
            array[number] = row
        return array

    def _best(self, rows: Array, k: int) -> list[list[tuple[float, int]]]:
        """Score and class of the best k of each row; of equal ones the first class."""
        scores = self._activation(rows.astype(np.float64))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        best = np.take_along_axis(scores, order, axis=1)
        # Six digits are what a float32 has; more would be noise that looks like precision.
        return [
            [(float(f"{score:.6g}"), index) for score, index in zip(*row, strict=True)]
            for row in zip(best.tolist(), order.tolist(), strict=True)
        ]


def _softmax(values: Array) -> Array:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    shares: Array = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _sigmoid(values: Array) -> Array:
    # By way of tanh, which does not overflow.
    shares: Array = 0.5 * (1 + np.tanh(0.5 * values))
    return shares


_ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {"softmax": _softmax, "sigmoid": _sigmoid, "none": lambda values: values}
