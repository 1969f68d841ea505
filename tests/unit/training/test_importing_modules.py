"""Weights with a class, TorchScript files and torch.export programs as sources: they answer as the module that they came from."""

from __future__ import annotations

import warnings
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch

from registry.errors import Refused, UsageError
from training.importing.program_file import _is_arithmetic
from training.importing.request import Adaptation, ImportRequest, Normalization
from training.importing.sample import read_sample
from training.importing.story import import_digest, write_source_of
from training.recipe import ComponentConfig, ExportConfig
from training.source.imported import open_imported
from training.source.trained import export_program

ROWS = 6
HERE = __name__


class Cell(torch.nn.Module):
    """A step of a recurrence: x [n, 3], state [2, n, 3]; `gain` is a number. `scale` is made by the class and not saved."""

    def __init__(self, width: int = 3):
        super().__init__()
        self.inner = torch.nn.Linear(3, width)
        self.tied = torch.nn.Linear(3, width)
        self.tied.weight = self.inner.weight
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)

    def forward(self, x, gain: float = 1.0, *, state):
        new = torch.tanh(self.inner(x) * gain + state * self.scale)
        return new.mean(0), new


class Named(Cell):
    """The same with every input positional, and outputs by name."""

    def forward(self, state, x, gain: float = 1.0):
        new = torch.tanh(self.inner(x) * gain + state * self.scale)
        return {"y": new.mean(0), "next": new}


class Stateful(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count += 1
        return x * self.count


@pytest.fixture(scope="module")
def cell() -> Named:
    torch.manual_seed(0)
    return Named().eval()


RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, 3)).astype(np.float32)
STATE = RNG.normal(size=(ROWS, 2, 3)).astype(np.float32)
AXES = {"state": 1, "next": 1}


def _request(tmp_path, file, inputs, *, model=None, outputs=None, allow_pickle=False, **adaptation):
    np.savez(tmp_path / "sample.npz", **inputs)
    return ImportRequest(
        file=file,
        name="m",
        sample=tmp_path / "sample.npz",
        export=ExportConfig(outputs=outputs),
        adaptation=Adaptation(**adaptation),
        model=None if model is None else ComponentConfig(class_path=f"{HERE}.{model}"),
        allow_pickle=allow_pickle,
    )


def _import(tmp_path, request, lines=None):
    sample = read_sample(request.sample)
    brought, signature = write_source_of(request, sample, "regression", tmp_path / "source", say=(lines or []).append)
    return brought, signature, open_imported(tmp_path / "source")


def _expected(cell, *, gain=2.0):
    with torch.no_grad():
        answer = cell(torch.from_numpy(STATE.transpose(1, 0, 2)), torch.from_numpy(X), gain)
    return answer["y"].numpy(), answer["next"].numpy().transpose(1, 0, 2)


def _answers(source):
    with torch.no_grad():
        answer = source.model(*(torch.from_numpy(np.ascontiguousarray(array)) for array in source.sample.values()))
    return [tensor.numpy() for tensor in (answer.values() if isinstance(answer, dict) else answer)]


@pytest.mark.parametrize("form", ["safetensors", "torch.save", "checkpoint"])
@pytest.mark.parametrize("model", ["Cell", "Named"])
def test_weights_and_a_class(tmp_path, cell, form, model):
    file = tmp_path / "weights.pt"
    if form == "safetensors":
        file = tmp_path / "weights.safetensors"
        safetensors.torch.save_model(cell, str(file))  # leaves the tied weight out
    else:
        torch.save(cell.state_dict() if form == "torch.save" else {"epoch": 3, "state_dict": cell.state_dict()}, file)
    if model == "Cell":
        with pytest.raises(UsageError, match="unknown: state"):  # keyword-only: an exporter could not hand it over
            _import(tmp_path, _request(tmp_path, file, {"x": X, "state": STATE}, model=model, fixed={"gain": 2.0}, batch_axes={"state": 1}))
        return
    brought, signature, source = _import(
        tmp_path, _request(tmp_path, file, {"x": X, "state": STATE}, model=model, fixed={"gain": 2.0}, batch_axes=AXES)
    )
    assert brought.kind == "module"
    assert [str(spec) for spec in signature.inputs] == ["state: FP32[-1, 2, 3]", "x: FP32[-1, 3]"]
    assert [str(spec) for spec in signature.outputs] == ["y: FP32[-1, 3]", "next: FP32[-1, 2, 3]"]
    for got, want in zip(_answers(source), _expected(cell), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_weights_of_another_class_are_refused(tmp_path, cell):
    state = cell.state_dict()
    for change, words in (
        (state | {"head.bias": torch.zeros(1)}, "unexpected head.bias"),
        ({key: value for key, value in state.items() if "bias" not in key}, "missing inner.bias, tied.bias"),
        (state | {"inner.bias": torch.zeros(7)}, "size mismatch for inner.bias"),
        ({}, "does not hold weights"),
        ({"a": 3}, "'a' is a int"),
    ):
        torch.save(change, tmp_path / "w.pt")
        with pytest.raises(UsageError, match=words):
            _import(tmp_path, _request(tmp_path, tmp_path / "w.pt", {"x": X}, model="Named"))
        (tmp_path / "source").rmdir()
    torch.save(state | {"scale": torch.tensor(0.5)}, tmp_path / "w.pt")  # the class makes it itself
    _import(tmp_path, _request(tmp_path, tmp_path / "w.pt", {"x": X, "state": STATE}, model="Named", fixed={"gain": 1.0}, batch_axes=AXES))


def test_weights_without_a_class_and_a_class_with_a_whole_model_are_refused(tmp_path, cell):
    torch.save(cell.state_dict(), tmp_path / "w.pt")
    safetensors.torch.save_model(cell, str(tmp_path / "w.safetensors"))
    for file in (tmp_path / "w.pt", tmp_path / "w.safetensors"):
        with pytest.raises(UsageError, match=r"--class-path|class that they belong to"):
            _import(tmp_path, _request(tmp_path, file, {"x": X}))
        (tmp_path / "source").rmdir()
    (tmp_path / "m.onnx").touch()
    with pytest.raises(UsageError, match="--class-path goes with weights"):
        _import(tmp_path, _request(tmp_path, tmp_path / "m.onnx", {"x": X}, model="Named"))


def _script(module, file):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module), str(file))
    return file


def test_a_torchscript_file_behind_another_face(tmp_path, cell):
    file = _script(cell, tmp_path / "m.pt")
    request = _request(tmp_path, file, {"x": X, "state": STATE}, outputs=("y", "next"), fixed={"gain": 2.0}, batch_axes=AXES)
    brought, signature, source = _import(tmp_path, request)
    assert brought.kind == "torchscript"
    assert [spec.name for spec in (*signature.inputs, *signature.outputs)] == ["state", "x", "y", "next"]
    for got, want in zip(_answers(source), _expected(cell), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_a_torchscript_file_as_it_is(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU()).eval()
    file = _script(module, tmp_path / "m.pt")
    _, _, source = _import(tmp_path, _request(tmp_path, file, {"input": X}))
    with torch.no_grad():
        np.testing.assert_array_equal(source.model(torch.from_numpy(X)).numpy(), module(torch.from_numpy(X)).numpy())
    (tmp_path / "broken.pt").write_bytes(file.read_bytes()[:-100])
    with pytest.raises(Refused, match="unpickling"):  # no zip any more: whatever it is, it is not opened
        _import(tmp_path / "b", _request(tmp_path, tmp_path / "broken.pt", {"input": X}))


def test_a_model_that_keeps_a_state_is_told_of(tmp_path):
    lines: list[str] = []
    file = _script(Stateful(), tmp_path / "m.pt")
    request = _request(tmp_path, file, {"x": X})
    write_source_of(request, read_sample(request.sample), "regression", tmp_path / "source", say=lines.append)
    assert [line for line in lines if "answered differently" in line]


class Pixels(torch.nn.Module):
    def forward(self, image):
        return image.mean((2, 3))


def test_normalization_is_inside_the_model(tmp_path):
    pixels = RNG.integers(0, 256, (ROWS, 3, 4, 4), dtype=np.uint8)
    how = Normalization(mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.25), scale=1 / 255)
    file = _script(Pixels(), tmp_path / "m.pt")
    _, signature, source = _import(tmp_path, _request(tmp_path, file, {"image": pixels}, normalize={"image": how}))
    assert str(signature.inputs[0]) == "image: UINT8[-1, 3, 4, 4]"
    got = source.model(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(got, (pixels.mean((2, 3)) / 255 - np.array(how.mean)) / np.array(how.std), rtol=1e-4, atol=1e-5)


class Doubled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(6, 2)

    def forward(self, x):
        return self.linear(torch.cat([x, x[:, :3]], dim=1) if x.shape[1] == 3 else x)


def _program(tmp_path, rows=4):
    torch.manual_seed(0)
    model = Doubled().eval()
    program = export_program(model, {"x": torch.from_numpy(X[:rows])})
    torch.export.save(program, tmp_path / "m.pt2")  # with its example inputs, as MLflow writes them
    return model, tmp_path / "m.pt2"


def test_a_program_is_opened_and_kept_without_its_examples(tmp_path):
    model, file = _program(tmp_path)
    with zipfile.ZipFile(file) as archive:
        examples = next(info for info in archive.infolist() if "sample_inputs" in info.filename)
        assert examples.file_size > 0
    brought, _, source = _import(tmp_path, _request(tmp_path, file, {next(iter(_inputs_of(file))): X}))
    assert brought.kind == "program"
    with torch.no_grad():
        np.testing.assert_allclose(_first(source.model(torch.from_numpy(X))), model(torch.from_numpy(X)).numpy(), rtol=1e-6)
    with zipfile.ZipFile(tmp_path / "source" / "data" / "model.pt2") as archive:
        assert next(info for info in archive.infolist() if "sample_inputs" in info.filename).file_size == 0


def _inputs_of(file):
    from training.importing.program_file import open_program, program_inputs

    return program_inputs(open_program(file))


def _first(answer):
    return (answer[0] if isinstance(answer, (tuple, list)) else answer).numpy()


def test_a_program_with_a_fixed_batch_is_refused(tmp_path):
    program = torch.export.export(Doubled().eval(), (torch.from_numpy(X[:1]),))
    torch.export.save(program, tmp_path / "m.pt2")
    with pytest.raises(UsageError, match=r"batch dimension of the program's input x is fixed \(\[1, 3\]\)"):
        _import(tmp_path, _request(tmp_path, tmp_path / "m.pt2", {"x": X}))


def _rewritten(file, change):
    """The same archive with records changed by `change(name, content) -> content`."""
    with zipfile.ZipFile(file) as archive:
        records = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(file, "w") as archive:
        for info, content in records:
            archive.writestr(info, change(info.filename, content))


def test_a_program_that_would_be_unpickled_is_refused(tmp_path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return (print, ("boom",))

    _, file = _program(tmp_path)
    _rewritten(file, lambda name, content: pickle.dumps(Bomb()) if "sample_inputs" in name else content)
    with pytest.raises(Refused, match="is not plain data"):
        _import(tmp_path, _request(tmp_path, file, {"x": X}))


def test_a_program_whose_weights_would_be_unpickled_is_refused(tmp_path):
    _, file = _program(tmp_path)
    _rewritten(file, lambda name, content: content.replace(b'"use_pickle": false', b'"use_pickle": true') if "_config" in name else content)
    with pytest.raises(Refused, match="is not plain data"):
        _import(tmp_path, _request(tmp_path, file, {"x": X}))


def test_a_program_whose_sizes_are_python_is_refused(tmp_path):
    _, file = _program(tmp_path)
    _rewritten(file, lambda name, content: content.replace(b"Symbol(", b"print(") if name.endswith(".json") else content)
    with pytest.raises(Refused, match="a symbolic size of the program is not arithmetic"):
        _import(tmp_path, _request(tmp_path, file, {"x": X}))


@pytest.mark.parametrize(
    ("size", "fine"),
    [
        ("s0", True),
        ("2*s0 + 1", True),
        ("Mul(Integer(2), Symbol('s31', positive=True, integer=True))", True),
        ("Max(1, s0 // 2)", True),
        ("__import__('os').system('true')", False),
        ("exit(1)", False),
        ("s0.__class__", False),
        ("eval(chr(49))", False),
        ("Symbol('s0').func", False),
        ("(lambda: 1)()", False),
        ("[x for x in s]", False),
    ],
)
def test_sizes_are_arithmetic_or_refused(size, fine):
    assert _is_arithmetic(size) is fine


def test_the_digest_of_an_import_is_of_what_it_was_given(tmp_path, cell):
    torch.save(cell.state_dict(), tmp_path / "w.pt")
    one = _request(tmp_path, tmp_path / "w.pt", {"x": X}, model="Named")
    first = import_digest(one, read_sample(one.sample), "regression")
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "w.pt").write_bytes((tmp_path / "w.pt").read_bytes())
    assert (
        import_digest(
            _request(tmp_path / "moved", tmp_path / "moved" / "w.pt", {"x": X}, model="Named"), read_sample(one.sample), "regression"
        )
        == first
    )
    for other in (
        _request(tmp_path, tmp_path / "w.pt", {"x": X}, model="Cell"),
        _request(tmp_path, tmp_path / "w.pt", {"x": X}, model="Named", fixed={"gain": 1}),
        _request(tmp_path, tmp_path / "w.pt", {"x": X}, model="Named", outputs=("a", "b")),
        _request(tmp_path, tmp_path / "w.pt", {"x": X + 1}, model="Named"),
    ):
        assert import_digest(other, read_sample(other.sample), "regression") != first
    assert import_digest(one, read_sample(one.sample), "classification") != first
