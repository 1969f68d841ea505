"""What a user says about a model, read from the command line's words; and the sample."""

from __future__ import annotations

import numpy as np
import pytest

from registry.errors import UsageError
from training.importing.request import (
    ImportRequest,
    Normalization,
    parse_batch_axes,
    parse_dynamic,
    parse_fixed,
    parse_init_args,
    parse_normalize,
)
from training.importing.sample import Sample, in_order, infer_task, read_sample


def test_words_become_values():
    assert parse_dynamic(["input_ids=1", "image=2,3"]) == {"input_ids": (1,), "image": (2, 3)}
    assert parse_batch_axes(["state=1"]) == {"state": 1}
    assert parse_fixed(["sr=16000", "rate=0.5", "flag=true", "shape=[1, 2]"]) == {"sr": 16000, "rate": 0.5, "flag": True, "shape": [1, 2]}
    assert parse_init_args("{width: 32, name: a}") == {"width": 32, "name": "a"}
    assert parse_normalize(["image:mean=0.485,0.456,0.406,std=0.229,0.224,0.225,scale=1/255", "x:mean=127,std=128,axis=3"]) == {
        "image": Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), scale=1 / 255),
        "x": Normalization(mean=(127.0,), std=(128.0,), axis=3),
    }


@pytest.mark.parametrize(
    ("parse", "text", "words"),
    [
        (parse_dynamic, "input_ids", "not a name and a value"),
        (parse_dynamic, "input_ids=x", "not the number of a dimension"),
        (parse_batch_axes, "state=-1", "not the number of a dimension"),
        (parse_fixed, "sr=fast", "a fixed input is a number"),
        (parse_fixed, "sr=[]", "a fixed input is a number"),
        (parse_fixed, "sr={a: 1}", "a fixed input is a number"),
        (parse_normalize, "image", "not a normalization"),
        (parse_normalize, "image:variance=2", "not a normalization"),
        (parse_normalize, "image:mean=a", "not a number"),
        (parse_normalize, "image:scale=1/0", "not a number"),
        (parse_normalize, "image:scale=1,2", "scale is one number"),
        (parse_normalize, "image:std=0", "divides by std"),
        (parse_normalize, "image:mean=1,2,std=1,2,3", "different numbers of channels"),
        (parse_normalize, "image:axis=0", "channels cannot lie along the batch"),
    ],
)
def test_words_that_mean_nothing_are_refused(parse, text, words):
    with pytest.raises(UsageError, match=words):
        parse([text])


@pytest.mark.parametrize("text", ["[1]", "3", "{1: 2}", "{"])
def test_arguments_of_a_class_are_a_mapping(text):
    with pytest.raises(UsageError, match=r"mapping|YAML"):
        parse_init_args(text)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"no such file .*model\.onnx"):
        ImportRequest(file=tmp_path / "model.onnx", name="m", sample=tmp_path / "s.npz")


def _saved(tmp_path, **arrays):
    np.savez(tmp_path / "s.npz", **arrays)
    return tmp_path / "s.npz"


def test_a_sample_has_inputs_and_perhaps_labels(tmp_path):
    path = _saved(tmp_path, x=np.zeros((3, 2), np.float32), target=np.array([0, 1, 2]))
    sample = read_sample(path)
    assert list(sample.inputs) == ["x"]
    assert infer_task(sample.labels) == "classification"
    assert len(sample) == 3
    unlabelled = read_sample(path, labels_from="nothing")
    assert list(unlabelled.inputs) == ["x", "target"]
    assert infer_task(unlabelled.labels) == "regression"
    assert sample.digest() != unlabelled.digest()
    assert infer_task(np.zeros((3, 2))) == "regression"


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros((3, 2)), "y": np.zeros((2, 2))}, r"not the same number of them \(x 3, y 2\)"),
        ({"x": np.zeros((0, 2))}, "have no rows"),
        ({"x": np.float32(1)}, "have no rows"),
        ({"target": np.zeros(3)}, "has no inputs"),
        ({"x": np.array(["a", "b"])}, "neither numbers nor booleans"),
    ],
)
def test_a_sample_that_is_none_is_refused(tmp_path, arrays, words):
    with pytest.raises(UsageError, match=words):
        read_sample(_saved(tmp_path, **arrays))


def test_a_sample_is_not_unpickled(tmp_path):
    np.savez(tmp_path / "s.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UsageError, match="cannot read the sample"):
        read_sample(tmp_path / "s.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(UsageError, match="cannot read the sample"):
        read_sample(tmp_path / "text.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(UsageError, match="one array without a name"):
        read_sample(tmp_path / "one.npy")


def test_inputs_are_put_into_the_models_order():
    sample = Sample(inputs={"b": np.zeros(2), "a": np.ones(2)})
    assert list(in_order(sample, ("a", "b"), what="m")) == ["a", "b"]
    with pytest.raises(UsageError, match=r"missing: c; unknown: b"):
        in_order(sample, ("a", "c"), what="m")
    positional = Sample(inputs={"input_0": np.zeros(2)}, positional=True)
    assert list(positional.named(("x", "y")).inputs) == ["x"]
    with pytest.raises(UsageError, match="has 1 inputs, the model 0"):
        positional.named(())
