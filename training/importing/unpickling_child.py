"""The process that unpickles: `python -I unpickling_child.py JOB`. See `training.importing.unpickling`.

It limits itself before it imports anything but the standard library, and opens the file last.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

JOB = "job.json"
SAMPLE = "sample.npz"
STATE = "state.safetensors"
PROGRAM = "model.pt2"
RESULT = "result.json"

# Landlock, https://docs.kernel.org/userspace-api/landlock.html: the calls' numbers are the same on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_GET_ABI = 1
_PATH_BENEATH = 1
_WRITES = sum(1 << bit for bit in (1, 4, 5, 6, 7, 8, 9, 10, 11, 12))  # write, remove, and make of every kind
_NO_NEW_PRIVILEGES = 38  # prctl


def main() -> None:
    """Read the job, limit this process, read the pickled file and write what was asked for."""
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_bytes())
    sys.path[:] = [*job["sys_path"], *([job["code"]] if job.get("code") else [])]
    scratch = Path(job["scratch"])
    limit(job["limits"])
    write_only_below(scratch)
    result = _state(job, scratch) if job["want"] == "state" else _program(job, scratch)
    (scratch / RESULT).write_text(json.dumps(result), encoding="utf-8")


def limit(limits: dict[str, int]) -> None:
    """Set this process's limits, which it cannot raise again."""
    for what, value in (
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_CPU, limits["cpu_s"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (value, value))


def landlock_abi() -> int:
    """Version of Landlock in this kernel; below 1 for none."""
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_GET_ABI)))


def write_only_below(directory: Path) -> bool:
    """Let this process write files below the directory only; False where the kernel has no Landlock."""
    if landlock_abi() < 1:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    handled = ctypes.c_uint64(_WRITES)
    ruleset = libc.syscall(_CREATE_RULESET, ctypes.byref(handled), ctypes.c_size_t(8), ctypes.c_uint32(0))
    if ruleset < 0:
        return False
    below = os.open(directory, os.O_PATH | os.O_CLOEXEC)

    class PathBeneath(ctypes.Structure):
        _pack_ = 1
        _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]

    rule = PathBeneath(_WRITES, below)
    try:
        added = libc.syscall(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), ctypes.byref(rule), ctypes.c_uint32(0))
        libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        restricted = libc.syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(below)
        os.close(ruleset)
    return bool(added == 0 and restricted == 0)


def _load(job: dict[str, Any]) -> Any:
    import torch  # noqa: PLC0415  # after the limits

    return torch.load(job["file"], map_location="cpu", weights_only=False)


def _state(job: dict[str, Any], scratch: Path) -> dict[str, Any]:
    import safetensors.torch  # noqa: PLC0415
    from torch import nn  # noqa: PLC0415

    from training.importing.weights_file import weights_in  # noqa: PLC0415

    loaded = _load(job)
    state = weights_in(loaded.state_dict() if isinstance(loaded, nn.Module) else loaded, Path(job["file"]))
    safetensors.torch.save_file({name: tensor.detach().clone().contiguous() for name, tensor in state.items()}, scratch / STATE)
    return {}


def _program(job: dict[str, Any], scratch: Path) -> dict[str, Any]:
    import torch  # noqa: PLC0415
    from torch import nn  # noqa: PLC0415

    from registry.errors import UsageError  # noqa: PLC0415
    from training.importing.adapted import Face, normalizations  # noqa: PLC0415
    from training.importing.class_inputs import taken_by  # noqa: PLC0415
    from training.importing.request import Adaptation  # noqa: PLC0415
    from training.importing.sample import read_sample, renamed  # noqa: PLC0415
    from training.interface import named_outputs  # noqa: PLC0415
    from training.source.trained import export_program  # noqa: PLC0415

    model = _load(job)
    if not isinstance(model, nn.Module):
        raise UsageError(f"the file holds no module ({type(model).__name__})", "Weights need --class-path.")
    model.eval()
    sample = dataclasses.replace(read_sample(scratch / SAMPLE, labels_from=""), positional=bool(job["positional"]))
    adaptation = Adaptation(fixed=job["fixed"], batch_axes=job["batch_axes"], normalize=normalizations(job["normalize"]))
    taken = taken_by(model, sample, adaptation, what=type(model).__name__)
    face = model if taken.by_position else Face(model, inputs=tuple(taken.inputs), outputs=job["outputs"], adaptation=adaptation)
    tensors = {name: torch.from_numpy(array) for name, array in taken.inputs.items()}
    program = export_program(face, tensors, dynamic=renamed(job["dynamic"], sample, tuple(taken.inputs)))
    with torch.no_grad():
        outputs = named_outputs(face(*tensors.values()), job["outputs"], "regression")
    torch.export.save(program, scratch / PROGRAM)
    return {"inputs": list(taken.inputs), "outputs": list(outputs)}


if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        sys.stderr.write(f"{type(error).__name__}: {' '.join(str(error).split())}\n")
        sys.exit(1)
