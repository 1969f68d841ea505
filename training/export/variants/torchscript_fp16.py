"""Variant `torchscript-fp16`: the traced and frozen model in half precision, for libtorch on a GPU.

Inputs and outputs stay float32, so that a client cannot tell; a batch is rounded on the device.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from registry.certificate import Check
from training.export.exporter import FP16_LIMITS, TORCHSCRIPT_FILE, ExportContext, Inspection, Limits
from training.export.variants.torchscript_graph import detached_copy, no_torchscript, operator_counts, quiet_torchscript, save_traced
from training.interface import Inference


class TorchScriptFp16:
    """TorchScript in float16."""

    name = "torchscript-fp16"
    limits: Limits = FP16_LIMITS

    def unfit(self, model: nn.Module, context: ExportContext) -> str | None:
        """For GPUs, and models whose Python there is."""
        if context.target != "cuda":
            return "float16 is for GPUs; a CPU computes it in float32 or slower"
        if isinstance(model, torch.jit.ScriptModule):
            return "a TorchScript file has its dtypes written into it"
        return no_torchscript(model, context)

    def export(self, model: nn.Module, context: ExportContext, into: Path) -> None:
        """Write `model.pt`. Traced on a GPU where there is one: a trace keeps the device of tensors that `forward` makes."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        half = HalfInference(detached_copy(model)).to(device)
        save_traced(half, [tensor.to(device) for tensor in context.example.values()], into / TORCHSCRIPT_FILE)

    def inspect(self, directory: Path, model: nn.Module, context: ExportContext) -> Inspection:
        """Every floating-point weight must be half."""
        path = directory / TORCHSCRIPT_FILE
        num_half, num_single = _count_weights(path)
        checks = (
            Check(name="precision/num_float16_weights", passed=num_half > 0, value=num_half, limit=1, relation=">="),
            Check(name="precision/num_float32_weights", passed=num_single == 0, value=num_single, limit=0),
        )
        return Inspection(checks=checks, facts={"torch": torch.__version__, "operators": operator_counts(path)})


class HalfInference(nn.Module):
    """A model in float16 that takes and answers float32.

    Args:
        model: Is changed in place.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inference = Inference(model.half())
        self.training = False

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Floating-point inputs as float16, float16 outputs as float32; others as they are."""
        answer = self.inference(*(tensor.half() if tensor.is_floating_point() else tensor for tensor in inputs))
        outputs = answer if isinstance(answer, tuple) else (answer,)
        single = tuple(tensor.float() if tensor.dtype is torch.float16 else tensor for tensor in outputs)
        return single[0] if len(single) == 1 else single


def _count_weights(path: Path) -> tuple[int, int]:
    """How many of a file's weights, constants of one dimension or more, are float16, and how many float32."""
    with quiet_torchscript():
        module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    graph = module.inlined_graph  # its nodes live as long as it does
    constants = (node.t("value") for node in graph.findAllNodes("prim::Constant") if _is_tensor(node))
    dtypes = [tensor.dtype for tensor in (*module.state_dict().values(), *constants) if tensor.dim() > 0]
    return dtypes.count(torch.float16), dtypes.count(torch.float32)


def _is_tensor(node: torch._C.Node) -> bool:
    return node.hasAttribute("value") and node.kindOf("value") == "t"
