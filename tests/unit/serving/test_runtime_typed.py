"""A model of every datatype in the real ONNX Runtime: from the bundle to a worker that has proved its golden set."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from registry.errors import Corrupt
from registry.names import ModelVersion
from serving.archive import build_archive, open_archive
from serving.runtime.modelway_runtime import backends, worker
from serving.runtime.modelway_runtime.core import Core
from serving.runtime.modelway_runtime.errors import LoadError
from serving.runtime.modelway_runtime.golden import compare
from serving.runtime.modelway_runtime.tensors import Spec
from support.typed_bundle import NUMBERS, TEXTS, VALUES, make_typed_bundle, typed_model, typed_signature

OPTIONS = {"provider": "CPUExecutionProvider", "intra_op_threads": 1}


def serve(tmp_path: Path, datatypes: tuple[str, ...]) -> Core:
    version = ModelVersion("typed", 1)
    bundle = make_typed_bundle(tmp_path / "bundle", version=version, datatypes=datatypes)
    archive = build_archive(bundle, "onnx-fp32", version, tmp_path)
    assert open_archive(archive.path).signature == typed_signature(datatypes)
    with zipfile.ZipFile(archive.path) as content:
        content.extractall(tmp_path / "unpacked")
    return worker.load(tmp_path / "unpacked", archive.engine_version)


@pytest.mark.parametrize("datatypes", [NUMBERS, TEXTS], ids=["numbers", "texts"])
def test_a_worker_serves_every_datatype(datatypes: tuple[str, ...], tmp_path: Path) -> None:
    core = serve(tmp_path, datatypes)
    columns = {datatype.lower(): VALUES[datatype].tolist() for datatype in datatypes}
    (answer,) = core.handle([({"x-modelway-protocol": "v1-predict"}, json.dumps({"inputs": columns}).encode())])
    assert answer.status == 200, answer
    for datatype in datatypes:
        values = VALUES[datatype]
        np.testing.assert_array_equal(np.array(json.loads(answer.body)["outputs"][f"{datatype.lower()}_out"], values.dtype), values)


CHANGES = {
    "numbers": (NUMBERS, [(b"1.0078125", b"1.015625"), (b"18446744073709551615", b"18446744073709549568")]),
    "texts": (TEXTS, [(b'"a: \xc3\xa9"', b'"a; \xc3\xa9"')]),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_the_golden_probe_asks_and_judges_every_datatype(kind: str, tmp_path: Path) -> None:
    datatypes, changes = CHANGES[kind]
    core = serve(tmp_path, datatypes)
    golden = open_archive(next(tmp_path.glob("*.mar"))).golden
    (answer,) = core.handle([({"x-modelway-protocol": "v2-infer"}, golden.request())])
    assert golden.judge(answer.status, answer.body).problems == ()
    assert core.handle([golden.binary_request()]) == [answer]
    for right, wrong in changes:
        assert right in answer.body
        assert len(golden.judge(200, answer.body.replace(right, wrong)).problems) == 1


@pytest.mark.parametrize("datatype", list(VALUES))
def test_onnxruntime_gets_and_gives_each(datatype: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    onnx.save(typed_model((datatype,)), tmp_path / backends.ONNX_FILE)
    name, values = datatype.lower(), VALUES[datatype]
    specs = [Spec(name, datatype, (-1, 2))], [Spec(f"{name}_out", datatype, (-1, 2))]
    backend = backends.load(tmp_path, "onnxruntime", *specs, OPTIONS)
    for rows in (1, 3):
        got = backend.run([np.repeat(values, rows, axis=0)])[f"{name}_out"]
        assert got.dtype == specs[0][0].dtype
        np.testing.assert_array_equal(got, np.repeat(values, rows, axis=0))


def test_torchscript_gets_bfloat16_and_no_text(tmp_path: Path) -> None:
    import warnings

    import torch

    class Doubles(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.dtype == torch.bfloat16
            return x + x

    (tmp_path / "model").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(Doubles()), str(tmp_path / backends.TORCHSCRIPT_FILE))
    specs = [Spec("x", "BF16", (-1, 2))], [Spec("y", "BF16", (-1, 2))]
    got = backends.load(tmp_path, "torchscript", *specs, OPTIONS).run([VALUES["BF16"]])["y"]
    np.testing.assert_array_equal(got, 2 * VALUES["BF16"])
    with pytest.raises(LoadError, match="no tensors of BYTES"):
        backends.load(tmp_path, "torchscript", [Spec("x", "BYTES", (-1, 2))], [], OPTIONS)


def test_text_beside_bfloat16_is_refused_at_load(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="cannot pass BYTES and BF16"):
        serve(tmp_path, ("BYTES", "BF16"))


def test_texts_are_equal_or_infinitely_far_off() -> None:
    want = {"y": np.array([["a", "b"]])}
    assert compare(want, {"y": np.array([["a", "b"]], object)}, {}).problems == ()
    off = compare(want, {"y": np.array([["a", "c"]], object)}, {"y": {"rtol": 1, "atol": 1e9}})
    assert off.max_abs_error == float("inf")
    assert "first in row 0" in off.problems[0]
    assert compare(want, {"y": np.zeros((1, 2))}, {}).problems


def test_an_archive_of_an_unknown_datatype_is_refused(tmp_path: Path) -> None:
    version = ModelVersion("typed", 1)
    bundle = make_typed_bundle(tmp_path / "bundle", version=version)
    archive = build_archive(bundle, "onnx-fp32", version, tmp_path)
    content = archive.path.read_bytes()
    archive.path.write_bytes(content.replace(b'"FP16"', b'"FP17"'))
    with pytest.raises(Corrupt):
        open_archive(archive.path)
