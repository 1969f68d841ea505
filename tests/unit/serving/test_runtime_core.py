"""The runtime that travels in archives: protocols, batching, and what is wrong with a request."""

from __future__ import annotations

import ast
import itertools
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.archive import runtime_files
from serving.runtime.modelway_runtime import jsons
from serving.runtime.modelway_runtime.core import Core
from serving.runtime.modelway_runtime.protocols import Answer, ModelInfo
from serving.runtime.modelway_runtime.tensors import Array, Spec

INPUT, OUTPUT = Spec("input", "FP32", (-1, 4)), Spec("logits", "FP32", (-1, 3))
WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3)
V2, V1 = {"x-modelway-protocol": "v2-infer"}, {"x-modelway-protocol": "v1-predict"}


class Linear:
    """x @ WEIGHT; throws for rows that start with -666, answers NaN for rows that start with -777."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def run(self, inputs: Sequence[Array]) -> dict[str, Array]:
        (x,) = inputs
        self.batches.append(len(x))
        if (x[:, 0] == -666).any():
            raise RuntimeError("poisoned")
        y = (x @ WEIGHT).astype(np.float32)
        y[x[:, 0] == -777] = np.nan
        return {"logits": y}


def core(backend: Any = None, **changes: Any) -> Core:
    info = {"name": "digits", "version": "3", "inputs": (INPUT,), "outputs": (OUTPUT,), "max_rows": 64} | changes
    return Core(ModelInfo(**info), backend or Linear())


def ask(body: object, headers: dict[str, str] | None = None, of: Core | None = None) -> Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return (of or core()).handle([(headers or {}, raw)])[0]


def v2(data: object, *, shape: object = None, name: str = "input", datatype: object = "FP32", **more: object) -> dict[str, Any]:
    shape = [len(data), 4] if shape is None and isinstance(data, list) else shape
    return {"inputs": [{"name": name, "datatype": datatype, "shape": shape, "data": data}], **more}


ROWS = [[1.0, 2.0, 3.0, 4.0], [0.5, 0.0, -1.0, 2.0]]
EXPECTED = (np.float32(ROWS) @ WEIGHT).tolist()
FLAT_ROWS, FLAT_EXPECTED = np.ravel(ROWS).tolist(), np.ravel(EXPECTED).tolist()


# --- what is answered


def test_predictions_answers_bare_rows() -> None:
    for body in (ROWS, {"instances": ROWS}, [{"input": row} for row in ROWS]):
        answer = ask(body)
        assert (answer.status, answer.content_type) == (200, "application/json")
        assert json.loads(answer.body) == EXPECTED


def test_v1_answers_rows_to_instances_and_columns_to_inputs() -> None:
    assert json.loads(ask({"instances": ROWS}, V1).body) == {"predictions": EXPECTED}
    assert json.loads(ask({"signature_name": "serving_default", "instances": [{"input": r} for r in ROWS]}, V1).body) == {
        "predictions": EXPECTED
    }
    assert json.loads(ask({"inputs": ROWS}, V1).body) == {"outputs": EXPECTED}
    assert json.loads(ask({"inputs": {"input": ROWS}}, V1).body) == {"outputs": EXPECTED}


@pytest.mark.parametrize("data", [ROWS, FLAT_ROWS])
def test_v2_takes_flat_and_nested_data(data: object) -> None:
    answer = json.loads(ask(v2(data, shape=[2, 4], id="a-1"), V2).body)
    assert answer == {
        "model_name": "digits",
        "model_version": "3",
        "id": "a-1",
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [2, 3], "data": FLAT_EXPECTED}],
    }


def test_v2_ready_says_which_version() -> None:
    answer = ask(b"", {"x-modelway-protocol": "v2-ready"})
    assert json.loads(answer.body) == {"name": "digits", "version": "3", "ready": True}


def test_v2_binary_in_and_out() -> None:
    raw = np.asarray(ROWS, "<f4").tobytes()
    head = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [2, 4], "parameters": {"binary_data_size": len(raw)}}]}
    head |= {"parameters": {"binary_data_output": True}}
    text = json.dumps(head).encode()
    answer = ask(text + raw, {**V2, "inference-header-content-length": str(len(text))})
    assert (answer.status, answer.content_type) == (200, "application/octet-stream")
    length = int(answer.headers["Inference-Header-Content-Length"])
    described = json.loads(answer.body[:length])["outputs"][0]
    assert described == {"name": "logits", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}}
    assert np.frombuffer(answer.body[length:], "<f4").reshape(2, 3).tolist() == EXPECTED


class TwoHeads:
    def __init__(self) -> None:
        self.batches: list[int] = []

    def run(self, inputs: Sequence[Array]) -> dict[str, Array]:
        ids, flags = inputs
        self.batches.append(len(ids))
        return {"sum": ids.sum(1, dtype=np.int64), "any": flags.any(1)}


def two_headed(backend: TwoHeads | None = None) -> Core:
    return core(
        backend or TwoHeads(),
        inputs=(Spec("ids", "INT32", (-1, -1)), Spec("flags", "BOOL", (-1, 2))),
        outputs=(Spec("sum", "INT64", (-1,)), Spec("any", "BOOL", (-1,))),
    )


def test_several_inputs_and_outputs_go_by_name() -> None:
    of = two_headed()
    rows = [{"ids": [1, 2, 3], "flags": [True, False]}, {"ids": [4, 5, 6], "flags": [False, False]}]
    assert json.loads(ask(rows, of=of).body) == [{"sum": 6, "any": True}, {"sum": 15, "any": False}]
    columns = {"ids": [[1, 2, 3], [4, 5, 6]], "flags": [[True, False], [False, False]]}
    assert json.loads(ask({"inputs": columns}, V1, of).body) == {"outputs": {"sum": [6, 15], "any": [True, False]}}
    tensors = [
        {"name": "flags", "datatype": "BOOL", "shape": [1, 2], "data": [True, False]},
        {"name": "ids", "datatype": "INT32", "shape": [1, 1], "data": [7]},
    ]
    asked = json.loads(ask({"inputs": tensors, "outputs": [{"name": "sum"}]}, V2, of).body)
    assert asked["outputs"] == [{"name": "sum", "datatype": "INT64", "shape": [1], "data": [7]}]


def test_requests_of_other_shapes_are_batched_apart() -> None:
    backend = TwoHeads()
    of = two_headed(backend)
    requests = [[{"ids": list(range(n)), "flags": [True, False]}] for n in (2, 5, 2, 5)]
    answers = of.handle([({}, json.dumps(request).encode()) for request in requests])
    assert [json.loads(answer.body)[0]["sum"] for answer in answers] == [1, 10, 1, 10]
    assert backend.batches == [2, 2]


def test_inputs_must_have_equally_many_rows() -> None:
    answer = ask({"inputs": {"ids": [[1], [2]], "flags": [[True, False]]}}, V1, two_headed())
    assert (answer.status, json.loads(answer.body)["error"]) == (400, "inputs differ in their number of rows (1, 2)")
    assert "missing input flags" in json.loads(ask({"inputs": {"ids": [[1]]}}, V1, two_headed()).body)["error"]
    assert ask([[1]], of=two_headed()).status == ask({"inputs": [[1]]}, V1, two_headed()).status == 400


# --- what is wrong with a request


@pytest.mark.parametrize(
    ("body", "headers", "message"),
    [
        (b"", {}, "not valid JSON"),
        (b"{", {}, "not valid JSON"),
        (b"\xff", {}, "not valid"),
        (b"[[NaN,1,2,3]]", {}, "not valid JSON"),
        (b"[[Infinity,1,2,3]]", {}, "not valid JSON"),
        (b"[[1e999,1,2,3]]", {}, ""),
        (b"[" * 100_000, {}, ""),
        (b"[" * 500 + b"]" * 500, {}, "nested deeper than its shape [-1, 4]"),
        (b"1", {}, "expected an array with at least one row"),
        (b"{}", {}, "expected an array of rows"),
        (b"[]", {}, "at least one row"),
        (b"[[]]", {}, "expected shape [-1, 4], got [1, 0]"),
        (b"[1,2,3,4]", {}, "expected shape [-1, 4], got [4]"),
        (b"[[1,2,3]]", {}, "expected shape [-1, 4], got [1, 3]"),
        (b"[[1,2,3,4],[1,2,3]]", {}, "rows differ in length"),
        (b"[[1,2,3,4],5]", {}, "rows differ in length or depth"),
        (b"[[[1],2,3,4]]", {}, "nested deeper"),
        (b'[["1",2,3,4]]', {}, "expected FP32 values, got a string"),
        (b"[[true,2,3,4]]", {}, "expected FP32 values, got a boolean"),
        (b"[[null,2,3,{}]]", {}, "expected FP32 values, got an object and null"),
        (b"[[1e39,2,3,4]]", {}, "outside the range of FP32"),
        (b'[{"input":[1,2,3,4]},{"other":[1,2,3,4]}]', {}, "exactly the inputs input"),
        (b'[{"input":[1,2,3,4]},[1,2,3,4]]', {}, "exactly the inputs input"),
        (b"[]", {"x-modelway-protocol": "v3"}, "unknown protocol"),
        (b"[]", V1, "expected a JSON object"),
        (b"{}", V1, 'either "instances"'),
        (b'{"inputs":[[1,2,3,4]],"instances":[[1,2,3,4]]}', V1, 'either "instances"'),
        (b'{"inputs":{"other":[[1,2,3,4]]}}', V1, "unknown input name; expected input"),
        (b'{"inputs":{}}', V1, "missing input input"),
        (b'{"inputs":3}', V1, "expected an array of FP32, got an integer"),
        (b"[]", V2, "expected a JSON object"),
        (b"{}", V2, '"inputs" must be an array'),
        (json.dumps({**v2(ROWS), "inputs": []}).encode(), V2, '"inputs" must be an array'),
        (json.dumps(v2(ROWS, name="x")).encode(), V2, "unknown input name; expected input"),
        (json.dumps(v2(ROWS, datatype="FP64")).encode(), V2, "expected datatype FP32, got FP64"),
        (json.dumps(v2(ROWS, datatype=None)).encode(), V2, "expected datatype FP32"),
        (json.dumps(v2(ROWS, shape=[-2, 4])).encode(), V2, "non-negative"),
        (json.dumps(v2(ROWS, shape=[2.0, 4])).encode(), V2, "non-negative"),
        (json.dumps(v2(ROWS, shape=[True, 4])).encode(), V2, "non-negative"),
        (json.dumps(v2(ROWS, shape=[3, 4])).encode(), V2, "shape says [3, 4], data is nested as [2, 4]"),
        (json.dumps(v2([1.0], shape=[64, 4])).encode(), V2, "shape [64, 4] needs 256 values, got 1"),
        (json.dumps(v2(ROWS, shape=[10**30, 4])).encode(), V2, ""),
        (json.dumps(v2(ROWS, shape=[0, 4])).encode(), V2, "is empty"),
        (json.dumps(v2([], shape=[0, 4])).encode(), V2, "is empty"),
        (json.dumps(v2(ROWS, shape=[4, 2])).encode(), V2, "expected shape [-1, 4], got [4, 2]"),
        (json.dumps(v2(ROWS, shape=[8])).encode(), V2, "expected shape [-1, 4], got [8]"),
        (json.dumps(v2(ROWS, shape="x")).encode(), V2, "expected a shape"),
        (json.dumps(v2(ROWS, id=7)).encode(), V2, "id must be a string"),
        (json.dumps(v2(ROWS, outputs=[{"name": "nope"}])).encode(), V2, "unknown output name; expected logits"),
        (json.dumps({"inputs": v2(ROWS)["inputs"] * 2}).encode(), V2, "names a tensor twice"),
        (b"{}", {**V2, "inference-header-content-length": "3"}, "at most the body's 2 bytes"),
        (b"{}", {**V2, "inference-header-content-length": "-1"}, "at most the body's 2 bytes"),
        (b"{}", {**V2, "inference-header-content-length": "x"}, "at most the body's 2 bytes"),
        (
            b'{"inputs":[{"name":"input","datatype":"FP32","shape":[1,4],"parameters":{"binary_data_size":17}}]}',
            V2,
            "more than the 0 bytes",
        ),
        (
            b'{"inputs":[{"name":"input","datatype":"FP32","shape":[1,4],"parameters":{"binary_data_size":-1}}]}',
            V2,
            "binary_data_size must be",
        ),
    ],
)
def test_a_bad_request_gets_a_4xx_that_says_what_is_wrong(body: bytes, headers: dict[str, str], message: str) -> None:
    answer = ask(body, headers)
    assert answer.status == 400, answer
    error = json.loads(answer.body)
    assert set(error) == {"error"}
    assert message in error["error"]
    assert len(error["error"]) < 400
    assert "\n" not in error["error"]


def binary(raw: bytes, size: int, tail: bytes = b"") -> Answer:
    head = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": size}}]}
    text = json.dumps(head).encode()
    return ask(text + raw + tail, {**V2, "inference-header-content-length": str(len(text))})


@pytest.mark.parametrize(
    ("raw", "size", "tail", "message"),
    [
        (b"\0" * 12, 12, b"", "expected 16 bytes for shape [1, 4], got 12"),
        (b"\0" * 16, 16, b"x", "belong to no input"),
        (b"\0" * 8, 16, b"", "more than the 8 bytes"),
        (np.float32([np.nan, 0, 0, 0]).tobytes(), 16, b"", "NaN or infinity"),
    ],
)
def test_bad_binary_data_is_refused(raw: bytes, size: int, tail: bytes, message: str) -> None:
    answer = binary(raw, size, tail)
    assert answer.status == 400
    assert message in json.loads(answer.body)["error"]


def test_too_many_rows_are_refused_with_413() -> None:
    answer = ask([[0, 0, 0, 0]] * 65)
    assert (answer.status, json.loads(answer.body)["error"]) == (413, "too many rows: at most 64 a request, got 65")
    assert ask([[0, 0, 0, 0]] * 64).status == 200
    for claimed in (2**62, 2**63 - 1):
        assert ask(v2([1.0], shape=[claimed, 4]), V2).status == 413


@pytest.mark.parametrize(
    ("datatype", "value", "fits"),
    [
        ("UINT8", 255, True),
        ("UINT8", 256, False),
        ("UINT8", -1, False),
        ("UINT8", 1.0, False),
        ("INT64", 2**63 - 1, True),
        ("INT64", 2**63, False),
        ("UINT64", 2**64 - 1, True),
        ("FP16", 65504, True),
        ("FP16", 65520, False),
        ("FP64", 1e300, True),
        ("FP32", 3, True),
        ("BOOL", True, True),
        ("BOOL", 1, False),
    ],
)
def test_values_must_be_of_the_datatype(datatype: str, value: object, fits: bool) -> None:
    class Echo:
        def run(self, inputs: Sequence[Array]) -> dict[str, Array]:
            return {"y": inputs[0]}

    of = core(Echo(), inputs=(Spec("x", datatype, (-1,)),), outputs=(Spec("y", datatype, (-1,)),))
    answer = ask([value], of=of)
    assert (answer.status == 200) is fits, answer
    if fits:
        assert json.loads(answer.body) == [value]


def test_an_error_never_repeats_the_requests_data() -> None:
    secret = "hunter2-hunter2"
    for body, headers in [
        ([[secret, 1, 2, 3]], {}),
        ({secret: 1}, {}),
        (v2(ROWS, name=secret), V2),
        (v2(ROWS, datatype=secret), V2),
        ({"inputs": {secret: 1}}, V1),
    ]:
        answer = ask(body, headers)
        assert answer.status == 400
        assert secret.encode() not in answer.body


def test_one_long_string_among_numbers_costs_nothing() -> None:
    """numpy would make every element as wide as the longest: here 400 GB."""
    answer = ask(b"[[" + b"1," * 100_000 + b'"' + b"x" * 1_000_000 + b'"]]')
    assert answer.status == 400


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["inputs", "instances", "name", "shape", "data", "datatype", "id", "outputs", "parameters", "input"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    ),
    st.sampled_from(["v2-infer", "v1-predict", "predictions", "v2-ready"]),
)
def test_no_json_value_makes_a_5xx(body: object, protocol: str) -> None:
    answer = ask(body, {"x-modelway-protocol": protocol})
    assert answer.status in (200, 400, 413)
    json.loads(answer.body)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80), st.sampled_from(["v2-infer", "v1-predict", "predictions"]), st.integers(-1, 90))
def test_no_bytes_make_a_5xx(body: bytes, protocol: str, length: int) -> None:
    assert ask(body, {"x-modelway-protocol": protocol, "inference-header-content-length": str(length)}).status in (200, 400)


def test_the_standard_librarys_json_is_as_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive must answer the same where orjson is not installed."""
    monkeypatch.setattr(jsons, "_orjson", None)
    for body in (b"[[NaN,1,2,3]]", b"[[1e999,1,2,3]]", b"[" * 100_000, b"\xff", b"{"):
        answer = ask(body)
        assert answer.status == 400
        assert set(json.loads(answer.body)) == {"error"}
    assert json.loads(ask(ROWS).body) == EXPECTED
    assert json.loads(ask(v2(ROWS), V2).body)["outputs"][0]["data"] == FLAT_EXPECTED


# --- batches: P19


def test_one_bad_request_never_fails_its_batch_mates_in_any_order() -> None:
    good = [json.dumps([[float(i), 1.0, 2.0, 3.0]]).encode() for i in range(7)]
    expected = [(np.float32([[i, 1, 2, 3]]) @ WEIGHT).tolist() for i in range(7)]
    for bad in (b"{", b"[[-666,0,0,0]]", b"[[-777,0,0,0]]", b"[[1,2,3]]"):
        for position in range(8):
            backend = Linear()
            bodies = [*good[:position], bad, *good[position:]]
            answers = core(backend).handle([({}, body) for body in bodies])
            assert answers[position].status in (400, 500)
            assert answers[position].status == (500 if b"-" in bad else 400)
            others = [json.loads(answer.body) for index, answer in enumerate(answers) if index != position]
            assert others == expected
            assert backend.batches[0] >= 7  # they did run as one batch


def test_answers_never_cross_whatever_the_order_size_and_protocol() -> None:
    rng = random.Random(19)
    for permutation in itertools.islice(itertools.permutations(range(8)), 0, 40320, 997):
        requests, expected = [], []
        for value in permutation:
            rows = [[float(value), float(row), 0.0, 1.0] for row in range(rng.randrange(1, 5))]
            protocol = rng.choice(["v2-infer", "v1-predict", "predictions"])
            body: Any = {"v2-infer": v2(rows, id=str(value)), "v1-predict": {"instances": rows}, "predictions": rows}[protocol]
            requests.append(({"x-modelway-protocol": protocol}, json.dumps(body).encode()))
            expected.append((np.float32(rows) @ WEIGHT).tolist())
        for value, (headers, _), want, answer in zip(permutation, requests, expected, core().handle(requests), strict=True):
            got = json.loads(answer.body)
            if headers["x-modelway-protocol"] == "v2-infer":
                assert got["id"] == str(value)
                got = np.reshape(got["outputs"][0]["data"], (-1, 3)).tolist()
            assert (got["predictions"] if isinstance(got, dict) else got) == want


def test_a_batch_never_has_more_rows_than_allowed() -> None:
    backend = Linear()
    answers = core(backend, max_rows=10).handle([({}, json.dumps([[1, 2, 3, 4]] * 4).encode()) for _ in range(6)])
    assert [answer.status for answer in answers] == [200] * 6
    assert backend.batches == [8, 8, 8]


def test_a_failing_batch_runs_one_by_one_and_only_the_culprit_gets_500() -> None:
    backend = Linear()
    answers = core(backend).handle([({}, json.dumps([[first, 0, 0, 0]]).encode()) for first in (1, -666, 2)])
    assert [answer.status for answer in answers] == [200, 500, 200]
    assert backend.batches == [3, 1, 1, 1]
    assert json.loads(answers[1].body)["error"].startswith("the model failed on this request (RuntimeError); error id ")


def test_a_non_finite_output_can_be_let_through() -> None:
    of = Core(ModelInfo("digits", "3", (INPUT,), (OUTPUT,), 64), Linear(), check_finite=False)
    answer = of.handle([({}, b"[[-777,0,0,0]]")])[0]
    assert (answer.status, json.loads(answer.body)) == (200, [[None, None, None]])


@pytest.mark.parametrize("wrong", [np.zeros((1, 2), np.float32), np.zeros((2, 3), np.float32), np.zeros((1, 3), np.float64), np.float32(1)])
def test_an_output_that_is_not_the_signatures_is_a_500(wrong: Array) -> None:
    class Wrong:
        def run(self, inputs: Sequence[Array]) -> dict[str, Array]:
            return {"logits": wrong}

    assert ask([[1, 2, 3, 4]], of=core(Wrong())).status == 500


def test_an_empty_batch_has_no_answers() -> None:
    assert core().handle([]) == []


# --- the runtime travels alone


def test_the_runtime_imports_only_what_an_archive_can_count_on() -> None:
    allowed = {*sys.stdlib_module_names, "numpy"}
    for file in runtime_files():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [str(node.module)]
            else:
                continue
            assert {name.partition(".")[0] for name in names} <= allowed, file
    assert {Path(file).name for file in runtime_files()} >= {"modelway_handler.py", "core.py", "worker.py"}
