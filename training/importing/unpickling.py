"""Files that only unpickling can read, read in a process of their own. Nothing is ever unpickled in this process.

A pickle is a program: reading one runs what it says. The process that reads it
- has none of this one's environment (no keys, no addresses), a home and a working directory that are thrown away,
- may use so much memory, CPU time and disk, and not more (rlimits), and has no network where `unshare` may take it away,
- may write only below its scratch directory, where the kernel has Landlock,
- hands back tensors (safetensors) or a torch.export program, which is checked to hold no pickle before it is opened here.

It runs as the same user all the same, and can read that user's files. It is a fence, not a prison: only allow files whose
origin you know.
"""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from registry.errors import Refused, TimedOut, UsageError
from training.importing import unpickling_child
from training.importing.request import Adaptation
from training.importing.sample import Sample

_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What the reading process may use, beside what the size of the file asks for.

    Attributes:
        memory_bytes: Address space; torch alone maps a few GiB.
        cpu_s: CPU time.
        file_bytes: Largest file that it may write.
        wall_s: Time until it is killed.
    """

    memory_bytes: int = 12 * _GIB
    cpu_s: int = 600
    file_bytes: int = 1 * _GIB
    wall_s: float = 900.0


def refuse_pickle(file: Path, reason: object = "") -> Refused:
    """What is raised for a file that only unpickling can read, when that was not allowed."""
    said = " ".join(str(reason).split())
    detail = f": {said.split('. ')[0][:160]}" if said else ""
    return Refused(
        f"the file can only be read by unpickling it, which runs whatever program it holds ({file}{detail})",
        "Save it as safetensors or with torch.export, or give --allow-pickle if you know where it comes from.",
    )


def unpickle_state(file: Path, *, limits: Limits | None = None) -> dict[str, torch.Tensor]:
    """The weights of a pickled state dict, checkpoint or module. Raises UsageError, TimedOut."""
    with _scratch() as scratch:
        _run(scratch, {"file": str(file.resolve()), "want": "state"}, file, limits or Limits())
        return safetensors.torch.load_file(_made(scratch, unpickling_child.STATE, file))


def unpickle_program(
    file: Path,
    into: Path,
    *,
    sample: Sample,
    outputs: Sequence[str] | None,
    adaptation: Adaptation,
    dynamic: Mapping[str, Sequence[int]],
    code: Path | None = None,
    limits: Limits | None = None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A pickled module as a torch.export program, written to `into`, which the caller must check before opening it.

    Args:
        sample: Rows of every input, at least two.
        code: Directory with modules that the pickle needs.

    Returns:
        Names of the inputs in the order in which the program takes them, and of its outputs.

    Raises:
        UsageError: It is no module, or it cannot be captured.
        TimedOut: It took longer than the limits allow.
    """
    with _scratch() as scratch:
        np.savez(scratch / unpickling_child.SAMPLE, allow_pickle=False, **sample.inputs)
        job = {
            "file": str(file.resolve()),
            "want": "program",
            "positional": sample.positional,
            "outputs": None if outputs is None else list(outputs),
            "fixed": dict(adaptation.fixed),
            "batch_axes": dict(adaptation.batch_axes),
            "normalize": {
                name: {"mean": list(n.mean), "std": list(n.std), "scale": n.scale, "axis": n.axis}
                for name, n in adaptation.normalize.items()
            },
            "dynamic": {name: list(dimensions) for name, dimensions in dynamic.items()},
            "code": None if code is None else str(code.resolve()),
        }
        result = _run(scratch, job, file, limits or Limits())
        shutil.copyfile(_made(scratch, unpickling_child.PROGRAM, file), into)
        return tuple(str(name) for name in result["inputs"]), tuple(str(name) for name in result["outputs"])


def child_environment(scratch: Path) -> dict[str, str]:
    """All that the reading process knows of its surroundings."""
    return {"PATH": "/usr/bin:/bin", "HOME": str(scratch), "TMPDIR": str(scratch), "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="modelway-unpickle-") as directory:
        yield Path(directory)


def _run(scratch: Path, job: Mapping[str, Any], file: Path, limits: Limits) -> dict[str, Any]:
    size = file.stat().st_size
    described = {
        **job,
        "scratch": str(scratch),
        "sys_path": [path or str(Path.cwd()) for path in sys.path],
        "limits": {
            "memory_bytes": limits.memory_bytes + 4 * size,
            "cpu_s": limits.cpu_s,
            "file_bytes": limits.file_bytes + 2 * size,
        },
    }
    (scratch / unpickling_child.JOB).write_text(json.dumps(described), encoding="utf-8")
    argv = [*_without_network(), sys.executable, "-I", unpickling_child.__file__, str(scratch / unpickling_child.JOB)]
    try:
        done = subprocess.run(  # our own interpreter on our own file
            argv,
            env=child_environment(scratch),
            cwd=scratch,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limits.wall_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TimedOut(f"reading the pickled file took longer than {limits.wall_s:.0f} s ({file})", "It was stopped.") from None
    if done.returncode != 0:
        said = " ".join((done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1].split())[:300]
        raise UsageError(f"the pickled file cannot be read within the limits ({file}: {said})", "Is its code importable here?")
    result: dict[str, Any] = json.loads(_made(scratch, unpickling_child.RESULT, file).read_bytes())
    return result


def _made(scratch: Path, name: str, file: Path) -> Path:
    """A file of the reading process; a link would make us read something else."""
    path = scratch / name
    if path.is_symlink() or not path.is_file():
        raise UsageError(f"reading the pickled file gave nothing ({file})", "It does not hold a model or its weights.")
    return path


@functools.cache
def _without_network() -> tuple[str, ...]:
    """The command that takes the network away, where this user may use it: as root, or in a user namespace of its own."""
    unshare = shutil.which("unshare")
    for options in (("--net",), ("--user", "--map-current-user", "--net")):
        if unshare and subprocess.run([unshare, *options, "true"], capture_output=True, check=False).returncode == 0:
            return (unshare, *options)
    return ()
