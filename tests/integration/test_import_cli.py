"""`modelway import`, and `modelway export` of what Modelway did not train: the command line on a real MLflow store."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch

from modelway.composition import open_registry, open_tracking
from registry.bundle import Bundle
from registry.names import ModelVersion
from support.live_platform import LivePlatform
from support.mlflow_store import MLFLOW_WARNINGS

pytestmark = [pytest.mark.integration, *MLFLOW_WARNINGS]

RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> LivePlatform:
    """A home whose MLflow store the commands open themselves; nothing runs."""
    live = LivePlatform(tmp_path_factory.mktemp("import") / "home")
    live.run("status")
    return live


@pytest.fixture(scope="module")
def module() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()


@pytest.fixture(scope="module")
def files(home, module, tmp_path_factory):
    directory = tmp_path_factory.mktemp("files")
    np.savez(directory / "sample.npz", input=X)
    with torch.no_grad():
        labels = module(torch.from_numpy(X)).argmax(-1).numpy()
    np.savez(directory / "labelled.npz", input=X, target=labels)
    np.savez(directory / "wrong.npz", words=X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = {"input": {0: "batch"}, "scores": {0: "batch"}}
        for name, axes in (("free.onnx", batch), ("frozen.onnx", None)):
            torch.onnx.export(
                module,
                (torch.from_numpy(X[:2]),),
                str(directory / name),
                dynamo=False,
                input_names=["input"],
                output_names=["scores"],
                dynamic_axes=axes,
            )
        torch.jit.save(torch.jit.script(module), str(directory / "script.pt"))
    torch.save(module, directory / "pickled.pt")
    return directory


def _bundle(home: LivePlatform, name: str, tmp_path) -> Bundle:
    model, _, version = name.partition("/")
    registry = open_registry(open_tracking(home.settings))
    return Bundle.open(registry.fetch_bundle(ModelVersion(model, int(version)), tmp_path / "bundle"))


def test_an_onnx_file_becomes_a_version_once_and_is_exported(home, files, tmp_path):
    arguments = ("import", str(files / "free.onnx"), "--name", "free", "--sample", str(files / "sample.npz"))
    imported = home.must(*arguments)
    assert imported == {
        "version": "free/1",
        "already": False,
        "kind": "onnx",
        "labels": False,
        "inputs": "input: FP32[-1, 4]",
        "outputs": "scores: FP32[-1, 3]",
    }
    again = home.run(*arguments, "--json")
    assert again.returncode == 0
    assert (json.loads(again.stdout)["version"], json.loads(again.stdout)["already"]) == ("free/1", True)
    assert "already imported as free/1" in again.stderr
    assert home.must(*arguments, "--outputs", "points")["version"] == "free/2"  # another option makes another version

    info = open_registry(open_tracking(home.settings)).version(ModelVersion("free", 1))
    assert info.tags["modelway.imported_from"].startswith("free.onnx@sha256:")
    assert info.tags["modelway.kind"] == "onnx"

    exported = home.must("export", "free/1", "--variants", "onnx-fp32")
    assert exported["chosen"] == "onnx-fp32"
    certificate = _bundle(home, "free/1", tmp_path).certificate("onnx-fp32").to_json()
    assert any("agreement" in check["name"] for check in certificate["checks"])  # there were no labels
    assert not any(check["name"] == "accuracy_drop" for check in certificate["checks"])


def test_labels_make_it_a_classifier(home, files, tmp_path):
    imported = home.must("import", str(files / "script.pt"), "--name", "labelled", "--sample", str(files / "labelled.npz"))
    assert (imported["kind"], imported["labels"], imported["outputs"]) == ("torchscript", True, "logits: FP32[-1, 3]")
    exported = home.must("export", "labelled/1", "--variants", "torchscript-fp32")
    assert exported["chosen"] == "torchscript-fp32"
    certificate = _bundle(home, "labelled/1", tmp_path).certificate("torchscript-fp32").to_json()
    assert any(check["name"] == "accuracy_drop" for check in certificate["checks"])


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (("frozen.onnx", "--name", "m", "--sample", "sample.npz"), 2, "the batch dimension of input input is fixed (2)"),
        (("free.onnx", "--name", "m", "--sample", "wrong.npz"), 2, "missing: input; unknown: words"),
        (("free.onnx", "--name", "m"), 2, "an import needs a name and a sample"),
        (("nothing.onnx", "--name", "m", "--sample", "sample.npz"), 2, "no such file"),
        (("free.onnx", "--name", "m", "--sample", "sample.npz", "--serving", "."), 2, "transforms.json"),
        (("pickled.pt", "--name", "m", "--sample", "sample.npz"), 3, "give --allow-pickle"),
        (("models:/nowhere/1",), 1, "nowhere"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(home, files, arguments, exit_code, words):
    places = [str(files / word) if word.endswith((".onnx", ".npz", ".pt")) else word for word in arguments]
    done = home.run("import", *places)
    assert done.returncode == exit_code, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(said) == 1
    assert words in said[0]


@pytest.fixture(scope="module")
def foreign(home, module):
    """Versions that MLflow's own functions made: 1 as a program, 2 pickled, 3 as a program of one row, 4 without a run."""
    import mlflow
    from mlflow.models import infer_signature

    store = open_tracking(home.settings)
    with torch.no_grad():
        signature = infer_signature(X[:5], module(torch.from_numpy(X[:5])).numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.set_tracking_uri(store.uri)
        mlflow.set_registry_uri(store.uri)
        experiment = mlflow.create_experiment("foreign", artifact_location=f"{store.artifact_root}/foreign")
        given = {"signature": signature, "registered_model_name": "foreign"}
        with mlflow.start_run(experiment_id=experiment):
            mlflow.pytorch.log_model(module, name="one", input_example=X[:5], serialization_format="pt2", **given)
            mlflow.pytorch.log_model(module, name="two", input_example=X[:5], serialization_format="pickle", **given)
            mlflow.pytorch.log_model(module, name="three", input_example=X[:1], serialization_format="pt2", **given)
        mlflow.set_experiment(experiment_id=experiment)
        mlflow.pytorch.log_model(module, name="four", input_example=X[:5], serialization_format="pt2", **given)
    return store


@pytest.mark.parametrize("version", [1, 4])
def test_a_version_of_mlflow_is_exported_as_it_is(home, foreign, version):
    before = home.run("export", f"foreign/{version}", "--variants", "onnx-fp32", "--json")
    assert before.returncode == 0, before.stderr
    assert f"foreign/{version} was not made by Modelway" in before.stderr
    assert json.loads(before.stdout)["chosen"] == "onnx-fp32"
    again = home.run("export", f"foreign/{version}", "--variants", "onnx-fp32", "--json")
    assert again.returncode == 0, again.stderr
    assert "was not made by Modelway" not in again.stderr
    assert home.must("import", f"models:/foreign/{version}")["already"] is True
    info = open_registry(foreign).version(ModelVersion("foreign", version))
    assert info.run_id is not None
    assert info.bundle is not None


def test_a_pickled_version_is_refused_until_it_is_allowed(home, foreign):
    refused = home.run("export", "foreign/2", "--variants", "onnx-fp32")
    assert refused.returncode == 3
    assert "modelway import models:/foreign/2 --allow-pickle" in refused.stderr
    adopted = home.must("import", "models:/foreign/2", "--allow-pickle", "--task", "classification")
    assert (adopted["already"], adopted["kind"]) == (False, "program")
    assert home.must("export", "foreign/2", "--variants", "onnx-fp32")["chosen"] == "onnx-fp32"


def test_a_program_of_one_row_is_refused_with_the_way_out(home, foreign):
    refused = home.run("export", "foreign/3")
    assert refused.returncode == 2
    assert "is fixed ([1, 4]). Export it again with two or more rows" in refused.stderr
