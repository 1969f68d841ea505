from __future__ import annotations

import io
import json

import numpy as np
import pytest

from registry.errors import Corrupt
from serving.golden import Golden
from serving.runtime.modelway_runtime.golden import GoldenSet, compare
from support.bundles import SIGNATURE_OF_TESTS, TOLERANCE_OF_TESTS, expected_logits, golden_inputs


def npz(**arrays: object) -> bytes:
    file = io.BytesIO()
    np.savez(file, **{name.replace("__", "/"): array for name, array in arrays.items()})  # type: ignore[arg-type]
    return file.getvalue()


def golden() -> Golden:
    return Golden.from_bytes(
        SIGNATURE_OF_TESTS, npz(in__input=golden_inputs(), out__logits=expected_logits(golden_inputs())), TOLERANCE_OF_TESTS
    )


def answer(logits: object, name: str = "logits") -> bytes:
    array = np.asarray(logits, dtype=np.float32)
    return json.dumps(
        {"outputs": [{"name": name, "datatype": "FP32", "shape": list(array.shape), "data": array.ravel().tolist()}]}
    ).encode()


def test_the_request_holds_the_golden_inputs() -> None:
    request = json.loads(golden().request())
    (tensor,) = request["inputs"]
    assert (tensor["name"], tensor["datatype"], tensor["shape"]) == ("input", "FP32", [8, 4])
    np.testing.assert_array_equal(np.float32(tensor["data"]).reshape(8, 4), golden_inputs())
    assert json.loads(golden().request(max_rows=2))["inputs"][0]["shape"] == [2, 4]


def test_an_answer_within_tolerance_has_no_problem_and_says_how_far_off_it_is() -> None:
    comparison = golden().judge(200, answer(expected_logits(golden_inputs()) + 5e-5))
    assert comparison.problems == ()
    assert 4e-5 < comparison.max_abs_error < 6e-5


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (answer(expected_logits(golden_inputs()) + 0.5), "output logits is off by 0.5"),
        (answer(expected_logits(golden_inputs())[:7]), "has shape"),
        (answer(expected_logits(golden_inputs()), name="other"), "output logits is missing"),
        (answer(expected_logits(golden_inputs())[::-1]), "is off by"),
        (b"{}", "not of the Open Inference Protocol"),
        (b"[", "not of the Open Inference Protocol"),
        (b'{"outputs": [{"name": "logits", "datatype": "FP32", "shape": [8, 3], "data": [null]}]}', "not of the Open Inference Protocol"),
    ],
)
def test_a_wrong_answer_is_a_problem_with_numbers(body: bytes, problem: str) -> None:
    comparison = golden().judge(200, body)
    assert problem in comparison.problems[0]


def test_an_error_status_is_a_problem() -> None:
    assert golden().judge(503, b"no worker").problems == ("answered 503: no worker",)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_within_tolerance(bad: float) -> None:
    want = {"y": np.float32([1.0, 2.0])}
    comparison = compare(want, {"y": np.float32([1.0, bad])}, {"y": {"rtol": 1e9, "atol": 1e9}})
    assert comparison.problems
    assert comparison.max_abs_error == np.inf


def test_an_output_without_a_tolerance_must_be_equal() -> None:
    want = {"label": np.int64([1, 2])}
    assert compare(want, {"label": np.int64([1, 2])}, {}).problems == ()
    assert compare(want, {"label": np.int64([1, 3])}, {}).problems


@pytest.mark.parametrize(
    "content",
    [
        b"nothing",
        npz(in__input=golden_inputs()),
        npz(in__input=golden_inputs(), out__logits=expected_logits(golden_inputs())[:3]),
        npz(in__input=golden_inputs()[:0], out__logits=expected_logits(golden_inputs()[:0])),
        npz(in__input=golden_inputs(), out__other=expected_logits(golden_inputs())),
        npz(other=golden_inputs()),
    ],
)
def test_a_broken_golden_set_is_corrupt(content: bytes) -> None:
    with pytest.raises(Corrupt, match="golden set"):
        Golden.from_bytes(SIGNATURE_OF_TESTS, content, TOLERANCE_OF_TESTS)


def test_pickles_are_refused() -> None:
    with pytest.raises(Corrupt, match="golden set"):
        Golden.from_bytes(SIGNATURE_OF_TESTS, npz(in__input=np.array([{}], dtype=object), out__logits=np.zeros((1, 3))), TOLERANCE_OF_TESTS)


def test_the_set_knows_its_rows() -> None:
    assert GoldenSet.load(npz(in__a=np.zeros((5, 1)), out__b=np.zeros((5,)))).num_rows == 5


def test_a_large_set_is_asked_in_parts_that_together_are_all_of_it() -> None:
    whole = golden()
    parts = list(whole.parts(max_values=12))  # three rows of four
    assert [part.data.num_rows for part in parts] == [3, 3, 2]
    assert [part.data.num_rows for part in whole.parts(max_values=1)] == [1] * 8  # never less than a row
    assert [part.data.num_rows for part in whole.parts()] == [8]
    for name, array in whole.data.inputs.items():
        assert np.array_equal(np.concatenate([part.data.inputs[name] for part in parts]), array)
    expected = expected_logits(golden_inputs())
    assert parts[1].judge(200, answer(expected[3:6])).problems == ()
    assert parts[1].judge(200, answer(expected[:3])).problems != ()
