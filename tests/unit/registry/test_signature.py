"""Signatures, and what a client written for one could trip over in another."""

from __future__ import annotations

import json

import numpy as np
import pytest

from registry.errors import UsageError
from registry.signature import NUMPY_DTYPES, PROTOCOL_DTYPES, Signature, TensorSpec, incompatibilities

X, Y = TensorSpec("x", "FP32", (-1, 4)), TensorSpec("y", "FP32", (-1, 3))


def signature(*, inputs: tuple[TensorSpec, ...] = (X,), outputs: tuple[TensorSpec, ...] = (Y,)) -> Signature:
    return Signature(inputs=inputs, outputs=outputs)


def test_datatypes_are_numpy_s():
    for protocol, numpy in NUMPY_DTYPES.items():
        assert np.dtype(numpy).name == numpy
        assert PROTOCOL_DTYPES[numpy] == {"BF16": "FP32"}.get(protocol, protocol)


@pytest.mark.parametrize("shape", [(), (1, 4), (4,), (-1, 0), (-1, -2)], ids=str)
def test_the_batch_comes_first_and_is_free(shape: tuple[int, ...]):
    with pytest.raises(UsageError, match="invalid shape of tensor x"):
        TensorSpec("x", "FP32", shape)


@pytest.mark.parametrize("datatype", ["", "fp32", "float32", "STRING", "FP8"])
def test_unknown_datatypes_are_refused(datatype: str):
    with pytest.raises(UsageError, match="unsupported datatype of tensor x"):
        TensorSpec("x", datatype, (-1, 4))


def test_names_of_a_side_are_distinct_and_at_least_one():
    with pytest.raises(UsageError, match="inputs"):
        signature(inputs=())
    with pytest.raises(UsageError, match="outputs"):
        signature(outputs=(Y, Y))
    signature(inputs=(X,), outputs=(X,))


def test_it_comes_back_from_json():
    made = signature(inputs=(X, TensorSpec("mask", "BOOL", (-1,))), outputs=(Y, TensorSpec("z", "INT64", (-1, -1, 2))))
    assert Signature.from_json(json.loads(json.dumps(made.to_json()))) == made


Z = TensorSpec("z", "FP32", (-1, 2))
CASES = {
    "the same": (signature(), ()),
    "more outputs": (signature(outputs=(Y, Z)), ()),
    "outputs in another order": (signature(outputs=(Z, Y)), ()),
    "a wider input": (signature(inputs=(TensorSpec("x", "FP32", (-1, -1)),)), ()),
    "another input size": (signature(inputs=(TensorSpec("x", "FP32", (-1, 5)),)), ("input x was [-1, 4], is [-1, 5]",)),
    "another input rank": (signature(inputs=(TensorSpec("x", "FP32", (-1, 4, 1)),)), ("input x was [-1, 4], is [-1, 4, 1]",)),
    "another input type": (signature(inputs=(TensorSpec("x", "FP16", (-1, 4)),)), ("input x was FP32, is FP16",)),
    "one more input": (signature(inputs=(X, Z)), ("input z is new and required",)),
    "a renamed input": (signature(inputs=(Z,)), ("input x is gone", "input z is new and required")),
    "an output less": (signature(outputs=(Z,)), ("output y is gone",)),
    "another output type": (signature(outputs=(TensorSpec("y", "FP64", (-1, 3)),)), ("output y was FP32, is FP64",)),
    "another output size": (signature(outputs=(TensorSpec("y", "FP32", (-1, 4)),)), ("output y was [-1, 3], is [-1, 4]",)),
    "an output of free size": (signature(outputs=(TensorSpec("y", "FP32", (-1, -1)),)), ("output y was [-1, 3], is [-1, -1]",)),
}


@pytest.mark.parametrize(("new", "problems"), CASES.values(), ids=CASES.keys())
def test_what_could_break_a_client(new: Signature, problems: tuple[str, ...]):
    assert incompatibilities(signature(), new) == problems


def test_a_free_input_may_not_become_fixed():
    free = signature(inputs=(TensorSpec("x", "FP32", (-1, -1)),))
    assert incompatibilities(free, signature()) == ("input x was [-1, -1], is [-1, 4]",)
