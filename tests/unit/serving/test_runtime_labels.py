"""Names of classes in answers: the scores held against scipy, the forms against what each protocol says."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, softmax
from tritonclient.grpc import service_pb2 as pb

from serving.runtime.modelway_runtime.core import Core
from serving.runtime.modelway_runtime.image_input import ImageInput
from serving.runtime.modelway_runtime.labels import Labels
from serving.runtime.modelway_runtime.messages import ModelInfo
from serving.runtime.modelway_runtime.tensors import Array, Spec
from support.runtime_echo import PREDICTIONS, V1, V2, ask, echo, error
from support.transform_bundles import picture

NAMES = ("cat", "dog", "hen", "cat")
ROWS = np.array([[1.5, -2.0, 0.25, 3.0], [4.0, 4.0, -1.0, 0.0]], np.float32)


def labels(top_k: int = 2, activation: str = "none") -> Labels:
    return Labels(NAMES, top_k=top_k, activation=activation)


def test_the_best_come_first_and_a_name_given_twice_tells_its_class() -> None:
    assert [list(row.items()) for row in labels(top_k=3).objects(ROWS)] == [
        [("cat (3)", 3.0), ("cat (0)", 1.5), ("hen", 0.25)],
        [("cat (0)", 4.0), ("dog", 4.0), ("cat (3)", 0.0)],
    ]


@pytest.mark.parametrize(
    ("activation", "expected"), [("softmax", softmax(ROWS[:1], axis=1)), ("sigmoid", expit(ROWS[:1])), ("none", ROWS[:1])]
)
def test_scores(activation: str, expected: Array) -> None:
    (row,) = labels(top_k=9, activation=activation).objects(ROWS[:1])
    assert [row[f"cat ({index})"] for index in (0, 3)] + [row["dog"], row["hen"]] == pytest.approx(expected[0, [0, 3, 1, 2]], rel=1e-5)


def test_of_equal_ones_the_first_class_comes_first() -> None:
    many = Labels([f"c{number}" for number in range(1000)], top_k=3, activation="none")
    values = np.tile(np.float32([0, 1, 0.5, 1]), 250)[None]
    assert many.classification(values, 4).tolist() == [["1:1:c1", "1:3:c3", "1:5:c5", "1:7:c7"]]


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("value", [1e4, -1e4, 65504])
def test_large_values_do_not_overflow(activation: str, value: float) -> None:
    (row,) = labels(activation=activation).objects(np.array([[value, 0, 0, 0]], np.float32))
    assert np.isfinite(list(row.values())).all()


def test_classification_is_score_index_label() -> None:
    got = labels().classification(ROWS, 3)
    assert got.shape == (2, 3)
    assert got.tolist() == [["3:3:cat", "1.5:0:cat", "0.25:2:hen"], ["4:0:cat", "4:1:dog", "0:3:cat"]]
    assert labels().classification(ROWS, 99).shape == (2, 4)


# --- asked for in v2


def labelled(**more: Any) -> Core:
    return echo(Spec("x", "FP32", (-1, 4)), labels={"x_out": labels()}, **more)


def v2(of_output: Any, core: Core | None = None, **request: Any) -> Any:
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 4], "data": ROWS.ravel().tolist()}
    return ask(core or labelled(), {"inputs": [tensor], "outputs": [{"name": "x_out", "parameters": of_output}], **request}, V2)


def test_a_v2_request_gets_labels_where_it_asks_for_them() -> None:
    (output,) = json.loads(v2({"classification": 1}).body)["outputs"]
    assert output == {"name": "x_out", "datatype": "BYTES", "shape": [2, 1], "data": ["3:3:cat", "4:0:cat"]}
    (output,) = json.loads(v2({"classification": 100}).body)["outputs"]
    assert output["shape"] == [2, 4]
    (output,) = json.loads(v2({}).body)["outputs"]
    assert output["data"] == ROWS.ravel().tolist()


def test_labels_go_as_binary_data_too() -> None:
    answer = v2({"classification": 1, "binary_data": True})
    (output,) = json.loads(answer.body[: int(answer.headers["Inference-Header-Content-Length"])])["outputs"]
    blob = answer.body[-output["parameters"]["binary_data_size"] :]
    assert output["datatype"] == "BYTES"
    assert blob == b"\x07\x00\x00\x003:3:cat\x07\x00\x00\x004:0:cat"


@pytest.mark.parametrize("number", [0, -1, "2", 1.0, True, [1]])
def test_a_wrong_number_of_labels_is_refused(number: Any) -> None:
    assert "classification must be a number of labels" in error(v2({"classification": number}), 400)


def test_labels_are_asked_of_outputs_that_have_them() -> None:
    assert "the model declares none" in error(v2({"classification": 1}, echo(Spec("x", "FP32", (-1, 4)))), 400)
    assert "request: the parameter classification is not supported" in error(v2({}, parameters={"classification": 1}), 400)


@pytest.mark.parametrize("raw", [True, False])
def test_grpc_gets_labels_where_it_asks_for_them(raw: bool) -> None:
    request = pb.ModelInferRequest(model_name="m")
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[2, 4])
    if raw:
        request.raw_input_contents.append(ROWS.tobytes())
    else:
        tensor.contents.fp32_contents.extend(ROWS.ravel().tolist())
    request.outputs.add(name="x_out").parameters["classification"].int64_param = 1
    answer = ask(labelled(), request.SerializeToString(), {"x-modelway-protocol": "v2-grpc"})
    response = pb.ModelInferResponse.FromString(answer.body)
    (output,) = response.outputs
    assert (output.datatype, list(output.shape)) == ("BYTES", [2, 1])
    if raw:
        assert response.raw_output_contents[0] == b"\x07\x00\x00\x003:3:cat\x07\x00\x00\x004:0:cat"
    else:
        assert list(output.contents.bytes_contents) == [b"3:3:cat", b"4:0:cat"]


# --- answers to bodies that are no tensors


class Means:
    """The mean of each channel, twice."""

    def run(self, inputs: Any) -> dict[str, Array]:
        means = inputs[0].mean(axis=(2, 3), dtype=np.float32)
        return {"first": means, "second": means}


def colors(*labelled: str) -> Core:
    spec = Spec("image", "FP32", (-1, 3, 4, 4))
    image = ImageInput(spec, {"size": [4, 4]})
    outputs = (Spec("first", "FP32", (-1, 3)), Spec("second", "FP32", (-1, 3)))
    named = {name: Labels(("r", "g", "b"), top_k=2, activation="none") for name in labelled}
    return Core(ModelInfo("m", "1", (spec,), outputs, 64, transforms={"image/png": image, "image/jpeg": image}, labels=named), Means())


BODY = picture((255, 51, 0))


@pytest.mark.parametrize(
    ("named", "row"),
    [
        (("first",), {"r": 1.0, "g": 0.2}),
        (("first", "second"), {"first": {"r": 1.0, "g": 0.2}, "second": {"r": 1.0, "g": 0.2}}),
    ],
)
def test_an_image_is_answered_with_labels(named: tuple[str, ...], row: Any) -> None:
    assert json.loads(ask(colors(*named), BODY, PREDICTIONS).body) == row
    assert json.loads(ask(colors(*named), BODY, V1).body) == {"predictions": [row]}


def test_an_image_is_answered_with_numbers_where_there_are_no_labels() -> None:
    row = {"first": pytest.approx([1, 0.2, 0]), "second": pytest.approx([1, 0.2, 0])}
    assert json.loads(ask(colors(), BODY, PREDICTIONS).body) == [row]
    assert json.loads(ask(colors(), BODY, V1).body) == {"predictions": [row]}


def test_an_image_on_v2s_path_is_answered_in_its_words() -> None:
    answer = ask(colors("first"), BODY, {**V2, "content-type": "image/png"})
    first, second = json.loads(answer.body)["outputs"]
    assert first == {"name": "first", "datatype": "BYTES", "shape": [1, 2], "data": ["1:0:r", "0.2:1:g"]}
    assert second["data"] == pytest.approx([1, 0.2, 0])
    assert (
        ask(colors("first"), BODY, {**V2, "content-type": "image/png", "accept": "application/octet-stream"}).content_type
        != answer.content_type
    )


def test_rows_that_are_numbers_are_answered_with_numbers() -> None:
    rows = np.ones((1, 3, 4, 4)).tolist()
    assert json.loads(ask(colors("first"), rows, PREDICTIONS).body) == [{"first": [1.0, 1.0, 1.0], "second": [1.0, 1.0, 1.0]}]
