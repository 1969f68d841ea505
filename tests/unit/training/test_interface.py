"""How models are called and their answers named."""

from __future__ import annotations

import pytest
import torch

from registry.errors import UsageError
from training.interface import Inference, call, infer_signature, named_inputs, named_outputs

ROWS = torch.arange(6.0).reshape(3, 2)


class TwoInputs(torch.nn.Module):
    def forward(self, left, right):
        return {"sum": left + right, "product": left * right}


@pytest.mark.parametrize("inputs", [(ROWS, ROWS + 1), [ROWS, ROWS + 1], {"right": ROWS + 1, "left": ROWS}])
def test_inputs_are_named_in_the_order_of_forward(inputs):
    named = named_inputs(TwoInputs(), inputs)
    assert list(named) == ["left", "right"]
    torch.testing.assert_close(named["right"], ROWS + 1)
    torch.testing.assert_close(call(TwoInputs(), inputs)["product"], ROWS * (ROWS + 1))


@pytest.mark.parametrize("inputs", [{"left": ROWS, "middle": ROWS}, (ROWS, ROWS, ROWS), ()])
def test_inputs_that_do_not_fit_are_refused(inputs):
    with pytest.raises(UsageError):
        named_inputs(TwoInputs(), inputs)


@pytest.mark.parametrize(
    ("answer", "names", "task", "expected"),
    [
        (ROWS, None, "classification", ["logits"]),
        (ROWS, None, "regression", ["prediction"]),
        ((ROWS, ROWS), None, "classification", ["output_0", "output_1"]),
        ({"b": ROWS, "a": ROWS}, None, "classification", ["b", "a"]),
        ({"b": ROWS, "a": ROWS}, ["x", "y"], "classification", ["x", "y"]),
        (ROWS, ["score"], "classification", ["score"]),
    ],
)
def test_outputs_are_named(answer, names, task, expected):
    assert list(named_outputs(answer, names, task)) == expected


@pytest.mark.parametrize(("answer", "names"), [(3.0, None), ("text", None), ((), None), ((ROWS, 3), None), (ROWS, ["a", "b"])])
def test_answers_that_are_no_tensors_are_refused(answer, names):
    with pytest.raises(UsageError):
        named_outputs(answer, names, "classification")


def test_the_exported_form_answers_a_tuple_in_order():
    total, product = Inference(TwoInputs())(ROWS, ROWS)
    torch.testing.assert_close(total, ROWS * 2)
    torch.testing.assert_close(product, ROWS**2)


def test_a_signature_has_the_batch_free():
    signature = infer_signature({"x": ROWS}, {"y": torch.zeros(3, 4, 5, dtype=torch.int64)})
    assert str(signature.inputs[0]) == "x: FP32[-1, 2]"
    assert str(signature.outputs[0]) == "y: INT64[-1, 4, 5]"


@pytest.mark.parametrize("output", [torch.zeros(2, 2), torch.tensor(1.0), torch.zeros(3, 2, dtype=torch.complex64)])
def test_a_tensor_without_the_batch_or_of_an_odd_dtype_is_refused(output):
    with pytest.raises(UsageError):
        infer_signature({"x": ROWS}, {"y": output})
