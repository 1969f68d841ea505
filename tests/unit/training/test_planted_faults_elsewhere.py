"""P25's export half on other models than digits: swapped outputs, lengths that are not free, weights in four bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from support.planted import OfAnother, Planted, edit_graph, every_variant, failed, subject
from training.export.catalog import EXPORTERS
from training.export.variants.onnx_fp32 import OnnxFp32
from training.export.variants.torchscript_fp32 import TorchScriptFp32

pytestmark = pytest.mark.usefixtures("short_latency")

EVERY = pytest.mark.parametrize("exporter", every_variant())


class TwoHeads(torch.nn.Module):
    """Two outputs of one shape."""

    def __init__(self, *, swapped: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.left = torch.nn.Linear(64, 32)
        self.right = torch.nn.Linear(64, 32)
        self.swapped = swapped

    def forward(self, wide):
        left, right = self.left(wide), self.right(wide)
        return {"first": right, "second": left} if self.swapped else {"first": left, "second": right}


@EVERY
def test_swapped_outputs_fail_in_every_variant(exporter, tmp_path):
    rows = {"wide": np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)}
    heads = subject(TwoHeads().eval(), rows, tmp_path / "scratch")
    if (reason := exporter.unfit(heads.model, heads.context)) is not None:
        pytest.skip(f"{exporter.name}: {reason}")
    found = failed(heads.measured(OfAnother(exporter, TwoHeads(swapped=True).eval()), tmp_path / "variant").certificate)
    assert {"parity/first/max_abs_error", "parity/second/max_abs_error"} <= found


class Wide(torch.nn.Module):
    """A million weights in one matrix: what four bits are for."""

    def __init__(self, *, flipped: bool = False, dropout: float = 0.0):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(1024, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 8))
        self.dropout = dropout
        if flipped:
            with torch.no_grad():
                weight = self.layers[0].weight.view(-1)
                weight[weight.abs().argmax()] *= -1

    def forward(self, wide):
        answer = self.layers(wide)
        return torch.nn.functional.dropout(answer, self.dropout, training=True) if self.dropout else answer


@pytest.mark.parametrize(
    ("planted", "caught_by"),
    [
        ({}, set()),
        ({"flipped": True}, {"weights/max_error_steps"}),
        ({"dropout": 0.1}, {"rows/prediction/repeated_max_abs_error"}),
    ],
    ids=["sound", "flipped weight", "dropout left on"],
)
def test_faults_in_four_bits(planted, caught_by, tmp_path):
    (four_bits,) = (exporter for exporter in EXPORTERS if exporter.name == "onnx-int4-weights")
    rows = {"wide": np.random.default_rng(0).normal(size=(64, 1024)).astype(np.float32)}
    wide = subject(Wide().eval(), rows, tmp_path / "scratch")
    assert four_bits.unfit(wide.model, wide.context) is None
    certificate = wide.measured(OfAnother(four_bits, Wide(**planted).eval()), tmp_path / "variant", accuracy_drop=0.1).certificate
    if not planted:
        assert certificate.passed, certificate.failures
    else:
        assert caught_by <= failed(certificate)


class Lengths(torch.nn.Module):
    """A mean over a free length; with a length baked in it is right for that one only."""

    def __init__(self, baked_in: int | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.head = torch.nn.Linear(8, 8)
        self.baked_in = baked_in

    def forward(self, steps):
        length = steps.shape[1] if self.baked_in is None else self.baked_in
        return self.head(steps.sum(dim=1) / length)


def _lengths(tmp_path):
    steps = {"steps": np.random.default_rng(0).normal(size=(64, 12, 8)).astype(np.float32)}
    return subject(Lengths().eval(), steps, tmp_path / "scratch", dynamic={"steps": (1,)})


@pytest.mark.parametrize("exporter", [OnnxFp32(), TorchScriptFp32()], ids=lambda e: e.name)
def test_a_sequence_length_baked_into_the_values_fails(exporter, tmp_path):
    found = failed(_lengths(tmp_path).measured(OfAnother(exporter, Lengths(baked_in=12).eval()), tmp_path / "variant").certificate)
    assert found == {"length/6/max_relative_error", "length/3/max_relative_error"}


def test_a_frozen_sequence_length_fails(tmp_path):
    def freeze(graph):
        graph.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 12

    found = failed(_lengths(tmp_path).measured(Planted(OnnxFp32(), edit_graph(freeze)), tmp_path / "variant").certificate)
    assert found == {"length/6/max_relative_error", "length/3/max_relative_error"}
