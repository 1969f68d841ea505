"""Pickled files: not opened unless that was allowed, and then in a process that has nothing and may do little."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from registry.errors import Refused, TimedOut, UsageError
from training.importing import unpickling_child
from training.importing.request import Adaptation, ImportRequest
from training.importing.sample import read_sample
from training.importing.story import write_source_of
from training.importing.unpickling import Limits, unpickle_state
from training.importing.weights_file import read_state
from training.recipe import ExportConfig
from training.source.imported import open_imported

X = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


class Runs:
    """A pickle that evaluates a Python expression where it is read."""

    def __init__(self, code: str):
        self.code = code

    def __reduce__(self):
        return (eval, (self.code,))


def _text(tensor) -> str:
    return bytes(tensor.tolist()).decode()


def _saved(path, code):
    torch.save({"told": Runs(f"__import__('torch').tensor(list(str({code}).encode()), dtype=__import__('torch').uint8)")}, path)
    return path


def _marking(tmp_path):
    marker = tmp_path / "marker"
    return marker, _saved(tmp_path / "bomb.pt", f"__import__('pathlib').Path({str(marker)!r}).write_text('boom')")


def test_without_leave_nothing_of_the_file_runs(tmp_path):
    marker, file = _marking(tmp_path)
    with pytest.raises(Refused, match=r"unpickling it, which runs whatever program it holds .*bomb\.pt"):
        read_state(file, allow_pickle=False)
    np.savez(tmp_path / "sample.npz", x=X)
    request = ImportRequest(file=file, name="m", sample=tmp_path / "sample.npz")
    with pytest.raises(Refused):
        write_source_of(request, read_sample(request.sample), "regression", tmp_path / "source", say=lambda line: None)
    assert not marker.exists()
    torch.load(file, weights_only=False)  # the file does what the test thinks it does
    assert marker.read_text() == "boom"


def test_with_leave_it_runs_in_another_process_without_our_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-tell")
    monkeypatch.setenv("MODELWAY_API_KEY", "do-not-tell")
    code = "__import__('json').dumps([__import__('os').getpid(), __import__('os').getcwd(), dict(__import__('os').environ)])"
    pid, cwd, environment = json.loads(_text(unpickle_state(_saved(tmp_path / "a.pt", code))["told"]))
    assert pid != os.getpid()
    assert cwd != str(Path.cwd())
    assert "do-not-tell" not in json.dumps(environment)
    allowed = {"PATH", "HOME", "TMPDIR", "LANG", "OMP_NUM_THREADS"}
    # What the interpreter and torch's own libraries set for themselves.
    assert {name for name in environment if not name.startswith(("LC_", "TORCH", "PYTORCH", "KMP_", "TRITON"))} <= allowed


def test_a_harmless_pickle_keeps_its_values(tmp_path):
    values = torch.arange(6.0).reshape(2, 3)
    torch.save({"weight": values, "told": Runs("__import__('torch').ones(2)")}, tmp_path / "a.pt")
    state = read_state(tmp_path / "a.pt", allow_pickle=True)
    assert torch.equal(state["weight"], values)
    assert torch.equal(state["told"], torch.ones(2))


@pytest.mark.skipif(unpickling_child.landlock_abi() < 1, reason="the kernel has no Landlock")
def test_it_may_not_write_beside_its_scratch_directory(tmp_path):
    marker, file = _marking(tmp_path)
    with pytest.raises(UsageError, match="PermissionError"):
        unpickle_state(file)
    assert not marker.exists()


def test_memory_and_time_are_limited(tmp_path):
    with pytest.raises(UsageError, match=r"MemoryError|allocate|not enough memory"):
        unpickle_state(_saved(tmp_path / "a.pt", "bytearray(40 << 30)"))
    with pytest.raises(UsageError, match="cannot be read within the limits"):
        unpickle_state(_saved(tmp_path / "b.pt", "[0 for _ in iter(int, 1)]"), limits=Limits(cpu_s=6))
    with pytest.raises(TimedOut, match="longer than 8 s"):
        unpickle_state(_saved(tmp_path / "c.pt", "__import__('time').sleep(600)"), limits=Limits(wall_s=8))


def test_what_holds_no_weights_is_said(tmp_path):
    torch.save(Runs("3"), tmp_path / "a.pt")
    with pytest.raises(UsageError, match=r"does not hold weights by name .*int"):
        unpickle_state(tmp_path / "a.pt")


def test_a_pickled_module_becomes_a_program_without_pickle(tmp_path):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).eval()
    torch.save(module, tmp_path / "m.pt")
    np.savez(tmp_path / "sample.npz", input=X)
    request = ImportRequest(
        file=tmp_path / "m.pt",
        name="m",
        sample=tmp_path / "sample.npz",
        export=ExportConfig(outputs=("score",)),
        adaptation=Adaptation(),
        allow_pickle=True,
    )
    brought, signature = write_source_of(request, read_sample(request.sample), "regression", tmp_path / "source", say=lambda line: None)
    assert brought.kind == "program"
    assert [str(spec) for spec in (*signature.inputs, *signature.outputs)] == ["input: FP32[-1, 3]", "score: FP32[-1, 2]"]
    answer = open_imported(tmp_path / "source").model(torch.from_numpy(X))
    with torch.no_grad():
        np.testing.assert_allclose(
            (answer[0] if isinstance(answer, tuple) else answer).detach().numpy(), module(torch.from_numpy(X)).numpy(), rtol=1e-6
        )
    assert not [path for path in (tmp_path / "source").rglob("*") if path.is_file() and _is_pickle(path)]


def _is_pickle(path):
    try:
        pickle.loads(path.read_bytes())
    except Exception:
        return False
    return True
