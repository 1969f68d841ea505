"""A TorchScript module that has no ONNX form: one clear failure, and nothing on stdout, where a command's result goes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.data.batches import Rows
from training.export.exporter import ExportContext
from training.export.onnx_graph import fp32_graph
from training.export.variants.torchscript_graph import quiet_torchscript
from training.interface import infer_signature


class Spectrum(torch.nn.Module):
    """Complex numbers, which ONNX does not have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.fft(x).abs()


def test_a_failure_says_nothing_on_stdout(tmp_path, capfd):
    with quiet_torchscript():
        model = torch.jit.script(Spectrum())
    x = torch.rand(4, 8)
    context = ExportContext(
        signature=infer_signature({"x": x}, {"y": model(x)}),
        example={"x": x},
        calibration=Rows(inputs={"x": x.numpy()}, target=np.zeros(4)),
        task="regression",
        scratch=tmp_path,
    )
    with pytest.raises(Exception, match="fft"):
        fp32_graph(model, context)
    assert capfd.readouterr().out == ""
