"""Variant `aoti`: the model compiled ahead of time to a shared library by AOTInductor, for libtorch without TorchScript.

Source: https://docs.pytorch.org/docs/stable/torch.compiler_aot_inductor.html. The library is for the instruction set of the CPU
that compiled it: a worker on a CPU without it refuses to load it.
"""

from __future__ import annotations

import importlib
import json
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from registry.certificate import Check
from training.export.exporter import AOTI_FILE, FP32_LIMITS, ExportContext, Inspection, Limits
from training.export.onnx_graph import free_dimensions
from training.export.runners import NUM_THREADS
from training.export.variants.torchscript_graph import quiet_torchscript
from training.interface import Inference, evaluating

_TIMING = "aoti-timing.json"  # in the scratch directory: how long it took is no property of the file


class AotInductor:
    """A `.pt2` package of AOTInductor, for the CPU."""

    name = "aoti"
    limits: Limits = FP32_LIMITS

    def unfit(self, model: nn.Module, context: ExportContext) -> str | None:
        """Needs what torch.export reads, and a C++ compiler; the machine that serves needs none."""
        if context.target != "cpu":
            return "it is compiled for the CPU only"
        if context.given_graph is not None:
            return "an ONNX file cannot be compiled by torch"
        if isinstance(model, torch.jit.ScriptModule):
            return "torch.export does not read TorchScript"
        return _no_compiler()

    def export(self, model: nn.Module, context: ExportContext, into: Path) -> None:
        """Write `model.pt2`."""
        shapes = tuple(dict.fromkeys(free_dimensions(spec), torch.export.Dim.DYNAMIC) for spec in context.signature.inputs)
        started = time.perf_counter()
        with quiet_torchscript(), evaluating(model), torch.no_grad():
            # Both copy torch's own deprecated LeafSpec.
            warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*", category=FutureWarning)
            # A recurrent layer of torch's own reassigns its list of weights, and puts it back.
            warnings.filterwarnings("ignore", message=r".*_flat_weights.*were assigned during export.*", category=UserWarning)
            program = torch.export.export(Inference(model), tuple(context.example.values()), dynamic_shapes=(shapes,))
            exported = time.perf_counter()
            torch._inductor.aoti_compile_and_package(
                program,
                package_path=str(into / AOTI_FILE),
                # Loops are compiled for a number of threads; workers, not threads, use a machine's cores.
                inductor_configs={"cpp.threads": NUM_THREADS, "compile_threads": 1},
            )
        timing = {"torch_export_s": exported - started, "compile_s": time.perf_counter() - exported}
        (context.scratch / _TIMING).write_text(json.dumps({name: round(seconds, 2) for name, seconds in timing.items()}))

    def inspect(self, directory: Path, model: nn.Module, context: ExportContext) -> Inspection:
        """What the library was compiled for, as the package itself says."""
        metadata, num_libraries = _package(directory / AOTI_FILE)
        checks = (
            Check(name="compiled/num_libraries", passed=num_libraries == 1, value=num_libraries, limit=1, relation="=="),
            _is("compiled/device", metadata.get("AOTI_DEVICE_KEY", ""), "cpu"),
        )
        facts: dict[str, Any] = {
            "torch": torch.__version__,
            "instruction_set": metadata.get("AOTI_CPU_ISA", ""),
            "machine": f"{metadata.get('AOTI_PLATFORM', '')} {metadata.get('AOTI_MACHINE', '')}",
        }
        timing = context.scratch / _TIMING
        return Inspection(checks=checks, facts=facts | (json.loads(timing.read_text()) if timing.exists() else {}))


def _is(name: str, found: str, wanted: str) -> Check:
    same = found == wanted
    return Check(name=name, passed=same, value=float(same), limit=1, relation="==", detail=f"{found}, wanted {wanted}")


def _no_compiler() -> str | None:
    builder = importlib.import_module("torch._inductor.cpp_builder")  # a second to import
    try:
        builder.get_cpp_compiler()
    except RuntimeError:
        return "there is no C++ compiler here (install g++, or name one in CXX)"
    return None


def _package(path: Path) -> tuple[dict[str, str], int]:
    """What a package says of its library, and how many libraries it has."""
    with zipfile.ZipFile(path) as package:
        names = package.namelist()
        (described,) = (name for name in names if name.endswith(".wrapper_metadata.json"))
        return dict(json.loads(package.read(described))), sum(name.endswith(".so") for name in names)
