"""libtorch in a worker, for a model that AOTInductor compiled: a shared library in a `.pt2` package.

Loading runs the library's code, so the file must be the one of the manifest; `worker.load` has checked that. Loading takes
milliseconds, needs no compiler, and unpacks the library under TMPDIR until the worker ends.
"""

from __future__ import annotations

import importlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import gpu
from .errors import LoadError
from .tensors import Array, Spec

_CPU_FLAGS = Path("/proc/cpuinfo")
# What a package calls an instruction set -> the flags that Linux shows for it.
_NEEDED_FLAGS: Mapping[str, frozenset[str]] = {
    "AVX2": frozenset({"avx2", "fma"}),
    "AVX512": frozenset({"avx512f", "avx512dq", "avx512vl", "avx512bw"}),
    "AVX512_VNNI": frozenset({"avx512_vnni"}),
    "AMX_TILE": frozenset({"amx_tile"}),
}


class AotiBackend:
    """A compiled package; its outputs are tensors in the signature's order."""

    def __init__(self, file: Path, inputs: Sequence[Spec], outputs: Sequence[Spec], options: Mapping[str, Any], gpu_id: int | None) -> None:
        if str(options["provider"]) != gpu.CPU:
            raise LoadError(f"a package of AOTInductor here is compiled for the CPU (provider {options['provider']})")
        missing = missing_instructions(compiled_for(file), cpu_flags())
        if missing:
            raise LoadError(f"the model is compiled for a CPU with {', '.join(sorted(missing))}, which this one has not; export it here")
        self._torch: Any = importlib.import_module("torch")
        self._torch.set_num_threads(int(options["intra_op_threads"]))
        # What `torch._inductor.aoti_load_package` wraps; that one imports the compiler, a second and 100 MB.
        self._package: Any = self._torch._C._aoti.AOTIModelPackageLoader(str(file), "model", False, 1, -1)
        self._outputs = [spec.name for spec in outputs]
        if any(spec.datatype == "BYTES" for spec in (*inputs, *outputs)):
            raise LoadError("torch has no tensors of BYTES")
        self._bf16_inputs = [spec.datatype == "BF16" for spec in inputs]

    def run(self, inputs: Sequence[Array]) -> dict[str, Array]:
        """See `backends.Backend`."""
        # torch wants memory that it may write to; a request's raw bytes are read-only.
        tensors = [self._torch.from_numpy(a if a.flags.writeable else a.copy()) for a in map(np.ascontiguousarray, inputs)]
        half = self._torch.bfloat16
        tensors = [tensor.to(half) if is_bf16 else tensor for tensor, is_bf16 in zip(tensors, self._bf16_inputs, strict=True)]
        with self._torch.inference_mode():
            results = self._package.run(tensors)
        if len(results) < len(self._outputs):
            raise LoadError(f"the model has {len(results)} outputs, the signature {len(self._outputs)}")
        return {
            name: (tensor.float() if tensor.dtype is half else tensor).numpy() for name, tensor in zip(self._outputs, results, strict=False)
        }


def compiled_for(file: Path) -> tuple[str, ...]:
    """The instruction sets that a package's library uses, as the package itself says; for example `("AVX512", "AVX512_VNNI")`."""
    with zipfile.ZipFile(file) as package:
        (described,) = (name for name in package.namelist() if name.endswith(".wrapper_metadata.json"))
        return tuple(str(json.loads(package.read(described)).get("AOTI_CPU_ISA", "")).split())


def cpu_flags() -> frozenset[str] | None:
    """What this machine's CPU can do, in Linux's words; None where it does not say."""
    try:
        lines = _CPU_FLAGS.read_text().splitlines()
    except OSError:
        return None
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), None)
    return None if flags is None else frozenset(flags)


def missing_instructions(needed: Sequence[str], flags: frozenset[str] | None) -> frozenset[str]:
    """Which of the instruction sets a CPU lacks; a library that uses one would end the process.

    >>> sorted(missing_instructions(("AVX512", "AVX512_VNNI"), frozenset({"avx2", "fma"})))
    ['AVX512', 'AVX512_VNNI']
    """
    if flags is None:
        return frozenset()
    return frozenset(name for name in needed if not _NEEDED_FLAGS.get(name, frozenset()) <= flags)
