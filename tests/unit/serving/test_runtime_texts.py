"""Texts as bodies and as BYTES tensors: what the model gets of them, in every protocol, and what hostile ones are answered."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from serving.runtime.modelway_runtime.core import Core
from serving.runtime.modelway_runtime.errors import LoadError
from serving.runtime.modelway_runtime.labels import Labels
from serving.runtime.modelway_runtime.messages import Decoded, ModelInfo
from serving.runtime.modelway_runtime.tensors import Array, Spec
from serving.runtime.modelway_runtime.text_input import TextInput
from support.runtime_echo import LENGTH, PREDICTIONS, V1, V2, ask, error
from support.transform_bundles import tokenizer

IDS, MASK, TYPES = (Spec(name, "INT64", (-1, -1)) for name in ("ids", "mask", "types"))
DECLARED = {"kind": "text", "ids": "ids", "mask": "mask", "max_length": 8, "pad_to_multiple_of": 4, "max_chars": 100}
TEXT = {"content-type": "text/plain"}


class Counts:
    """How often the text says good and bad; remembers its inputs."""

    def __init__(self) -> None:
        self.inputs: list[dict[str, Any]] = []

    def run(self, inputs: Any) -> dict[str, Array]:
        self.inputs.append({"shape": inputs[0].shape, "ids": inputs[0].tolist(), "rest": [array.tolist() for array in inputs[1:]]})
        return {"logits": np.stack([(inputs[0] == 2).sum(axis=1), (inputs[0] == 3).sum(axis=1)], axis=1).astype(np.float32)}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serving")
    tokenizer().save(str(path / "tokenizer.json"))
    return path


def text_input(directory: Path, *inputs: Spec, **declared: Any) -> TextInput:
    return TextInput(inputs or (IDS, MASK), {**DECLARED, **declared}, directory)


def core_of(texts: TextInput, *inputs: Spec, labels: Mapping[str, Labels] | None = None) -> Core:
    outputs = (Spec("logits", "FP32", (-1, 2)),)
    info = ModelInfo("m", "1", inputs or (IDS, MASK), outputs, 8, transforms={"text/plain": texts}, texts=texts, labels=labels or {})
    return Core(info, Counts())


@pytest.fixture
def core(directory: Path) -> Core:
    return core_of(text_input(directory))


def inputs_of(core: Core, body: bytes, headers: Mapping[str, str] = TEXT, protocol: Mapping[str, str] = PREDICTIONS) -> Any:
    decoded = core.decode({**protocol, **headers}, body)
    assert isinstance(decoded, Decoded), decoded
    return [array.tolist() for array in decoded.inputs]


# --- what the model gets


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("good film", [2, 4, 0, 0]),
        ("good bad film good bad", [2, 3, 4, 2, 3, 0, 0, 0]),
        ("good " * 20, [2] * 8),  # cut off
        ("film\nfilm", [4, 4, 0, 0]),  # one text, whatever lines it has
        ("schön", [1, 0, 0, 0]),
    ],
)
def test_a_text_is_tokenized_cut_off_and_padded(core: Core, text: str, ids: list[int]) -> None:
    assert inputs_of(core, text.encode()) == [[ids], [[int(number != 0) for number in ids]]]


def test_it_makes_what_the_signature_says(directory: Path) -> None:
    ids, types = Spec("ids", "INT32", (-1, 8)), Spec("types", "INT32", (-1, 8))
    made = text_input(directory, types, ids, mask=None, type_ids="types").tokenize(["good"])
    assert {name: array.dtype.name for name, array in made.items()} == {"ids": "int32", "types": "int32"}
    assert made["ids"].tolist() == [[2, 0, 0, 0, 0, 0, 0, 0]]  # an input of a fixed length is filled


def test_padding_is_that_of_the_tokenizers_file(directory: Path) -> None:
    left = tokenizer()
    left.enable_padding(direction="left", pad_id=1, pad_token="[UNK]", length=30)
    left.enable_truncation(2)
    left.save(str(directory / "left.json"))
    made = text_input(directory, tokenizer="left.json").tokenize(["good good good"])
    assert made["ids"].tolist() == [[1, 2, 2, 2]]
    assert made["mask"].tolist() == [[0, 1, 1, 1]]


def test_what_is_no_tokenizer_must_not_serve(directory: Path) -> None:
    (directory / "broken.json").write_text("{}")
    with pytest.raises(LoadError, match=r"the tokenizer cannot be used \(broken.json: "):
        text_input(directory, tokenizer="broken.json")


# --- how it is asked for

TEXTS = ["good film", "bad bad bad bad bad"]
COUNTS = [[1.0, 0.0], [0.0, 5.0]]
FLAT = [1.0, 0.0, 0.0, 5.0]


def counts(answer: Any) -> Any:
    assert answer.status == 200, answer
    return json.loads(answer.body)


def v2_tensor(shape: list[int], data: list[str] = TEXTS, **more: Any) -> dict[str, Any]:
    return {"name": "text", "datatype": "BYTES", "shape": shape, "data": data, **more}


@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_v2_takes_texts_in_json(core: Core, shape: list[int]) -> None:
    (output,) = counts(ask(core, {"inputs": [v2_tensor(shape)]}, V2))["outputs"]
    assert (output["shape"], output["data"]) == ([2, 2], FLAT)


@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_v2_takes_texts_as_binary_data(core: Core, shape: list[int]) -> None:
    blob = b"".join(struct.pack("<I", len(text)) + text.encode() for text in TEXTS)
    tensor = {"name": "text", "datatype": "BYTES", "shape": shape, "parameters": {"binary_data_size": len(blob)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    for _ in range(2):  # the second time the JSON part is remembered
        (output,) = counts(ask(core, head + blob, {**V2, LENGTH: str(len(head))}))["outputs"]
        assert output["data"] == FLAT


@pytest.mark.parametrize("raw", [True, False])
def test_grpc_takes_texts(core: Core, raw: bool) -> None:
    request = pb.ModelInferRequest(model_name="m")
    tensor = request.inputs.add(name="text", datatype="BYTES", shape=[2])
    if raw:
        request.raw_input_contents.append(b"".join(struct.pack("<I", len(text)) + text.encode() for text in TEXTS))
    else:
        tensor.contents.bytes_contents.extend(text.encode() for text in TEXTS)
    answer = ask(core, request.SerializeToString(), {"x-modelway-protocol": "v2-grpc"})
    assert answer.status == 200, answer
    response = pb.ModelInferResponse.FromString(answer.body)
    flat = np.frombuffer(response.raw_output_contents[0], "<f4") if raw else response.outputs[0].contents.fp32_contents
    assert list(flat) == FLAT


@pytest.mark.parametrize(
    ("protocol", "body", "key"),
    [
        (V1, {"instances": TEXTS}, "predictions"),
        (V1, {"instances": [{"text": text} for text in TEXTS]}, "predictions"),
        (V1, {"instances": ["good film", {"b64": "YmFkIGJhZCBiYWQgYmFkIGJhZA=="}]}, "predictions"),
        (V1, {"inputs": {"text": TEXTS}}, "outputs"),
        (PREDICTIONS, TEXTS, ""),
        (PREDICTIONS, {"instances": TEXTS}, ""),
    ],
)
def test_v1_takes_texts(core: Core, protocol: dict[str, str], body: Any, key: str) -> None:
    answer = counts(ask(core, body, protocol))
    assert (answer[key] if key else answer) == COUNTS


def test_numbers_are_still_taken(core: Core) -> None:
    tensors = [{"name": name, "datatype": "INT64", "shape": [1, 2], "data": data} for name, data in (("ids", [2, 2]), ("mask", [1, 1]))]
    assert counts(ask(core, {"inputs": tensors}, V2))["outputs"][0]["data"] == [2.0, 0.0]
    assert counts(ask(core, [{"ids": [2, 3], "mask": [1, 1]}], PREDICTIONS)) == [[1.0, 1.0]]


def test_texts_of_several_requests_run_as_one_batch_where_they_are_about_as_long(directory: Path) -> None:
    core = core_of(text_input(directory))
    bodies = [b"good", b"bad film", b"good bad film good bad", b"film film film"]
    answers = core.handle([({**PREDICTIONS, **TEXT}, body) for body in bodies])
    assert [json.loads(answer.body) for answer in answers] == [[[1, 0]], [[0, 1]], [[2, 2]], [[0, 0]]]
    assert [batch["shape"] for batch in core._backend.inputs] == [(3, 4), (1, 8)]  # type: ignore[attr-defined]


def test_a_text_is_answered_with_labels(directory: Path) -> None:
    labels = {"logits": Labels(("good", "bad"), top_k=5, activation="none")}
    core = core_of(text_input(directory), labels=labels)
    assert counts(ask(core, b"good bad bad", {**PREDICTIONS, **TEXT})) == {"bad": 2.0, "good": 1.0}
    assert counts(ask(core, ["good bad bad"], PREDICTIONS)) == [[1.0, 2.0]]


# --- what is refused


@pytest.mark.parametrize(
    ("body", "protocol", "status", "message"),
    [
        ({"inputs": [v2_tensor([3])]}, V2, 400, "shape [3] needs 3 values, got 2"),
        ({"inputs": [v2_tensor([1, 2])]}, V2, 400, "expected shape [-1, 1], got [1, 2]"),
        ({"inputs": [v2_tensor([2], datatype="FP32")]}, V2, 400, "expected datatype BYTES"),
        ({"inputs": [v2_tensor([0], [])]}, V2, 400, "is empty"),
        ({"inputs": [v2_tensor([9], ["x"] * 9)]}, V2, 413, "at most 8 a request"),
        (
            {"inputs": [v2_tensor([1], ["x"]), {"name": "ids", "datatype": "INT64", "shape": [1, 1], "data": [1]}]},
            V2,
            400,
            "either the texts",
        ),
        ({"inputs": [v2_tensor([1], ["x" * 101])]}, V2, 413, "a text has 101 characters; at most 100"),
        ({"inputs": [v2_tensor([2], ["x", ""])]}, V2, 400, "a text has no tokens"),
        ({"inputs": [v2_tensor([1], ["x"], name="texts")]}, V2, 400, "unknown input name; expected ids, mask, text"),
        ({"instances": [["a"]]}, V1, 400, "an object with the inputs"),
        ({"instances": ["a", 1]}, V1, 400, "expected BYTES values, got an integer"),
        ({"instances": ["a"] * 9}, V1, 413, "at most 8 a request"),
        ({"instances": [{"text": "a", "ids": [1]}]}, V1, 400, "exactly the inputs ids, mask"),
        ({"instances": [1]}, V1, 400, "an object with the inputs"),
        ({"inputs": {"text": "a"}}, V1, 400, "expected an array of BYTES"),
        ({"inputs": {"texts": ["a"]}}, V1, 400, "expected ids, mask, text"),
    ],
)
def test_wrong_texts_are_refused(core: Core, body: Any, protocol: dict[str, str], status: int, message: str) -> None:
    assert message in error(ask(core, body, protocol), status)


@pytest.mark.parametrize(
    ("body", "headers", "status", "message"),
    [
        (b"", {}, 400, "no tokens"),
        (b"  \n ", {}, 400, "no tokens"),
        (b"\xff\xfe", {}, 400, "must be UTF-8"),
        (b"x" * 101, {}, 413, "a text has 101 characters"),
        (b"x", {"content-type": "text/plain; charset=latin-1"}, 415, "send text as UTF-8"),
        (b"x", {"content-type": "text/html"}, 415, "text/plain"),
    ],
)
def test_wrong_bodies_are_refused(core: Core, body: bytes, headers: dict[str, str], status: int, message: str) -> None:
    assert message in error(ask(core, body, {**PREDICTIONS, **TEXT, **headers}), status)


@pytest.mark.parametrize("content_type", ["text/plain; charset=UTF-8", 'text/plain;charset="utf-8"', "TEXT/PLAIN"])
def test_utf_8_may_be_named(core: Core, content_type: str) -> None:
    assert ask(core, b"good", {**PREDICTIONS, "content-type": content_type}).status == 200


def test_all_texts_of_a_request_together_are_bounded(directory: Path) -> None:
    core = core_of(text_input(directory, max_chars=300_000))
    texts = ["x" * 299_999] * 4
    assert "at most 1048576 characters" in error(ask(core, texts, PREDICTIONS), 413)


def test_long_texts_are_decoded_aside(core: Core) -> None:
    assert core.takes_long({**PREDICTIONS, **TEXT}, b"x" * 5000)
    assert not core.takes_long({**PREDICTIONS, **TEXT}, b"x" * 500)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_random_bodies(directory: Path, body: bytes) -> None:
    answer = ask(core_of(text_input(directory)), body, {**PREDICTIONS, **TEXT})
    assert answer.status in (200, 400, 413)
