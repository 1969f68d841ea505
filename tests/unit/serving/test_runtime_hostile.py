"""What comes from anywhere: the accelerator held against the strict parser, hostile bodies, and random ones."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.runtime.modelway_runtime import fast_json, jsons
from serving.runtime.modelway_runtime.protocols import DECODERS, Decoded
from serving.runtime.modelway_runtime.tensors import Spec
from support.runtime_echo import LENGTH, OCTETS, PREDICTIONS, V1, ask, echo, error

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda children: st.lists(children, max_size=5) | st.dictionaries(st.text(max_size=5), children, max_size=5),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(JSON_VALUES)
def test_no_valid_json_is_called_repetitive(value: Any) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        assert not jsons._has_repeated_names(json.loads(text), text.encode())


# --- the accelerator is no judge

NUMBERS = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
ODD = NUMBERS | st.booleans() | st.none() | st.text(max_size=3) | st.lists(NUMBERS, max_size=2)


def regular(leaf: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    flat = st.lists(leaf, min_size=14, max_size=40)
    return flat | st.lists(flat, min_size=1, max_size=3) | flat.map(lambda row: [row, row]) | flat.map(lambda row: [[row], [row]])


def _claimed_shape(data: list[Any]) -> list[int]:
    shape: list[int] = []
    level: Any = data
    while isinstance(level, list):
        shape.append(len(level))
        level = level[0] if level else None
    return shape


@settings(max_examples=300, deadline=None)
@given(
    regular(NUMBERS) | regular(ODD),
    st.sampled_from([(-1,), (-1, -1), (-1, 20), (-1, 1, -1)]),
    st.sampled_from(["FP16", "FP32", "FP64", "BF16"]),
    st.sampled_from(["v2-infer", "v1-predict", "predictions"]),
)
def test_with_and_without_it_the_answers_are_the_same(data: Any, shape: tuple[int, ...], datatype: str, protocol: str) -> None:
    claimed = _claimed_shape(data)
    body: Any = {"instances": data} if protocol != "v2-infer" else None
    body = body or {"inputs": [{"name": "x", "datatype": datatype, "shape": claimed, "data": data}]}
    raw, headers = json.dumps(body).encode(), {"x-modelway-protocol": protocol}
    core = echo(Spec("x", datatype, shape))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_json, "_MIN_BYTES", 0)
        fast = core.handle([(headers, raw)])[0]
        patch.setattr(fast_json, "_simdjson", None)
        slow = core.handle([(headers, raw)])[0]
    assert fast == slow


@pytest.mark.parametrize(
    "data",
    [
        [0] * 13 + [False],
        [1.5] * 20 + [True],
        [1] * 20 + [[2]],
        [[1] * 20 + [[2]]],
        [[1] * 20, [1] * 19 + [[1]]],
        [[1] * 20, [1] * 5],
        [[1] * 5, [1] * 20],
        [[[1] * 20]],
        [1] * 20 + [None],
        [1] * 20 + ["[1]"],
        ["["] * 20,
        [{"a": 1}] * 20,
        [1, {"x": 1}],
        [1e39] * 20,
        [2**64] * 20,
    ],
    ids=lambda data: json.dumps(data)[:40],
)
def test_what_it_could_get_wrong_is_judged_as_without_it(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cores = [echo(Spec("x", "FP32", shape)) for shape in ((-1,), (-1, -1), (-1, 21), (-1, 1, -1))]
    asked = [(core, body) for core in cores for body in ([data], data, [data, data])]
    monkeypatch.setattr(fast_json, "_MIN_BYTES", 0)
    fast = [ask(core, body, PREDICTIONS) for core, body in asked]
    monkeypatch.setattr(fast_json, "_simdjson", None)
    assert fast == [ask(core, body, PREDICTIONS) for core, body in asked]


def test_the_accelerator_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[object] = []
    real = fast_json.parse_floats
    monkeypatch.setattr(jsons, "parse_floats", lambda text: used.append(real(text)) or used[-1])
    rows = np.random.default_rng(0).random((2, 100), dtype=np.float32)
    answer = ask(echo(Spec("x", "FP32", (-1, 100))), rows.tolist(), PREDICTIONS)
    np.testing.assert_array_equal(np.float32(json.loads(answer.body)), rows)
    assert [type(row) for row in used[0]] == [np.ndarray, np.ndarray]  # type: ignore[attr-defined]
    assert ask(echo(Spec("x", "INT32", (-1, 600))), [[1] * 599 + [1.5]], PREDICTIONS).status == 400
    assert len(used) == 1  # not asked where 1 and 1.0 differ


# --- hostile bodies

HOSTILE = {
    "open arrays": b"[" * 16_000_000,
    "empty arrays": b"[" + b"[]," * 5_000_000 + b"[]]",
    "empty objects": b"[" + b"{}," * 5_000_000 + b"{}]",
    "two million ids": b'{"instances":[[' + b"1," * 2_000_000 + b"1]]}",
    "two million rows": b'{"instances":[' + b"1," * 2_000_000 + b"1]}",
    "two million strings": b'{"instances":[["' + b'ab","' * 2_000_000 + b'"]]}',
    "a long string": b'{"instances":"' + b"x" * 16_000_000 + b'"}',
    "a long name": b'{"' + b"x" * 16_000_000 + b'":1}',
    "colons in strings": b'{"a":"' + b":" * 16_000_000 + b'"}',
    "quotes": b'{"a":"' + b'\\"' * 8_000_000 + b'"}',
    "a long number": b"[[" + b"9" * 16_000_000 + b"]]",
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("datatype", ["FP32", "INT64", "BYTES"])
def test_a_hostile_body_is_refused_and_takes_bounded_memory(kind: str, datatype: str) -> None:
    body, core = HOSTILE[kind], echo(Spec("x", datatype, (-1, 4)))
    tracemalloc.start()
    try:
        answer = ask(core, body, V1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    error(answer, answer.status)
    assert 400 <= answer.status < 500
    assert peak < 20 * len(body)


HEADERS = st.fixed_dictionaries(
    {"x-modelway-protocol": st.sampled_from([*DECODERS, "x"])},
    optional={
        "content-type": st.sampled_from(["application/json", OCTETS, "text/plain", "a/b; c", ""]) | st.text(max_size=20),
        "accept": st.sampled_from(["*/*", OCTETS, "application/json;q=0"]) | st.text(max_size=20),
        "content-encoding": st.sampled_from(["identity", "gzip"]) | st.text(max_size=10),
        LENGTH: st.integers(-5, 500).map(str) | st.text(max_size=5),
        "x-request-id": st.text(max_size=10),
    },
)
FIELDS = st.sampled_from(
    ["inputs", "outputs", "instances", "parameters", "id", "name", "datatype", "shape", "data", "binary_data_size", "b64", "x", "x_out"]
)
PLAUSIBLE = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**65) | st.floats() | st.sampled_from(["x", "x_out", "FP32", "BYTES", "AAAA"]),
    lambda children: st.lists(children, max_size=20) | st.dictionaries(FIELDS, children, max_size=6),
    max_leaves=40,
)


@settings(max_examples=500, deadline=None)
@given(HEADERS, st.binary(max_size=200) | PLAUSIBLE, st.sampled_from(["FP32", "INT8", "BOOL", "BF16", "BYTES"]), st.binary(max_size=20))
def test_whatever_comes_there_is_an_answer_that_is_no_5xx(headers: dict[str, str], body: Any, datatype: str, tail: bytes) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    core = echo(Spec("x", datatype, (-1, -1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_json, "_MIN_BYTES", 0)
        decoded = core.decode(headers, raw + tail)  # raises nothing
        (answer,) = core.run([decoded]) if isinstance(decoded, Decoded) else (decoded,)
    assert answer.status < 500, answer
