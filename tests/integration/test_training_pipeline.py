"""Training and export against a real MLflow store and the real registry adapter."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from registry.bundle import Bundle
from registry.errors import Corrupt, NotFound, Unavailable
from registry.mlflow_registry import MlflowRegistry
from registry.names import ModelVersion
from support.mlflow_store import MLFLOW_WARNINGS, new_store, serve
from training import environment
from training.data.digits import held_out, load_digits
from training.export.runners import open_variant
from training.export.stage import CHOSEN_TAG, export_version
from training.pipeline import train
from training.recipe import parse_recipe
from training.tracking import Tracking

pytestmark = [pytest.mark.integration, *MLFLOW_WARNINGS]

QUICK = ["trainer.max_epochs=3", "model.init_args.width=8"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return new_store(tmp_path_factory.mktemp("store") / "mlflow")


def _train(store, recipe="digits", overrides=(), **kwargs):
    return train(recipe, overrides, tracking_uri=store.uri, artifact_root=str(store.artifacts), **kwargs)


def _export(store, model_version, workdir, **kwargs):
    return export_version(model_version, MlflowRegistry(store.uri), tracking_uri=store.uri, workdir=workdir, **kwargs)


@pytest.fixture(scope="module")
def trained(store):
    lines = []
    return _train(store, overrides=QUICK, progress=lines.append), lines


@pytest.fixture(scope="module")
def exported(store, trained, tmp_path_factory):
    return _export(store, trained[0].model_version, tmp_path_factory.mktemp("work"))


def _artifacts(store, run_id, path=None):
    for info in store.client.list_artifacts(run_id, path):
        if info.is_dir:
            yield from _artifacts(store, run_id, info.path)
        else:
            yield info.path


def test_the_digits_recipe_reaches_its_accuracy(store):
    version = _train(store)
    assert version.metrics["accuracy"] >= 0.97


def test_a_run_has_everything_that_was_promised(store, trained):
    version, lines = trained
    run = store.client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    params = run.data.params
    assert params["model.init_args.width"] == "8"
    assert params["optimizer.learning_rate"] == "0.003"
    assert params["data_sha256"] == load_digits().digest() == run.data.tags["modelway.data_sha256"]
    assert params["package.torch"] == torch.__version__
    assert params["python"] == ".".join(map(str, sys.version_info[:3]))
    git = environment.git_state(Path.cwd())
    assert run.data.tags.get("mlflow.source.git.commit") == (git[0] if git else None)
    assert run.data.tags.get("modelway.git_dirty") in (("true", "false") if git else (None,))
    for metric in ("train_loss", "val_loss", "val_accuracy"):
        assert [point.step for point in store.client.get_metric_history(version.run_id, metric)] == [1, 2, 3]
    assert run.data.metrics["test_accuracy"] == version.metrics["accuracy"]
    assert sum(line.startswith("epoch ") for line in lines) == 3
    assert {
        "figures/learning_curve.png",
        "figures/confusion_matrix.png",
        "requirements.txt",
        "recipe.yaml",
        "model/weights.safetensors",
        "model/data/model.pt2",
        "model/model.json",
        "model/MLmodel",
        "model/MANIFEST.json",
    } <= set(_artifacts(store, version.run_id))


def test_the_recorded_recipe_trains_the_same_weights_again(store, trained, tmp_path):
    version, _ = trained
    recorded = store.client.download_artifacts(version.run_id, "recipe.yaml", str(tmp_path))
    again = _train(store, str(recorded))
    assert again.model_version.version > version.model_version.version
    weights = [
        Path(store.client.download_artifacts(run_id, "model/weights.safetensors", str(tmp_path / name))).read_bytes()
        for run_id, name in ((version.run_id, _new(tmp_path, "a")), (again.run_id, _new(tmp_path, "b")))
    ]
    assert weights[0] == weights[1]
    assert parse_recipe(Path(recorded).read_text()).model.init_args["width"] == 8


def _new(directory, name):
    (directory / name).mkdir()
    return name


def test_the_version_loads_with_mlflow_itself(store, trained):
    import mlflow

    version, _ = trained
    mlflow.set_tracking_uri(store.uri)
    mlflow.set_registry_uri(store.uri)
    model = mlflow.pytorch.load_model(f"models:/{version.model_version}")
    images, labels = held_out()
    with torch.no_grad():
        answers = model(torch.from_numpy(images)).argmax(-1).numpy()
    assert np.mean(answers == labels) == pytest.approx(version.metrics["accuracy"])


def test_a_run_that_fails_is_marked_so_and_registers_nothing(store, monkeypatch):
    def broken(*_args, **_kwargs):
        raise RuntimeError("disk on fire")

    before = len(store.client.search_model_versions("name='digits'"))
    monkeypatch.setattr("training.pipeline.evaluate", broken)
    with pytest.raises(RuntimeError, match="disk on fire"):
        _train(store, overrides=QUICK)
    experiment = store.client.get_experiment_by_name("digits")
    newest = store.client.search_runs([experiment.experiment_id], max_results=1)[0]
    assert newest.info.status == "FAILED"
    assert len(store.client.search_model_versions("name='digits'")) == before


def test_a_lost_answer_makes_no_second_version(store, monkeypatch):
    tracking = Tracking(store.uri, artifact_root=str(store.artifacts))
    create = tracking.client.create_model_version
    retries = []

    def answer_lost(*args, **kwargs):
        retries.append(os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES"))
        create(*args, **kwargs)
        raise ConnectionError("connection reset by peer")

    monkeypatch.setattr(tracking.client, "create_model_version", answer_lost)
    with tracking.run("lost", tags={}) as run:
        first = tracking.register("lost", run, source_sha256="abc")
        second = tracking.register("lost", run, source_sha256="abc")
    assert first == second == ModelVersion("lost", 1)
    assert retries == ["0"]  # MLflow's client must not send it again by itself
    (version,) = store.client.search_model_versions("name='lost'")
    assert version.tags["modelway.source_sha256"] == "abc"


def test_more_metrics_than_one_request_holds(store):
    tracking = Tracking(store.uri, artifact_root=str(store.artifacts))
    metrics = {f"export/variant/check/{number}": float(number) for number in range(1100)}
    with tracking.run("metrics", tags={}) as run:
        run.log_metrics(metrics)
    assert store.client.get_run(run.run_id).data.metrics == metrics


def test_a_creation_that_never_arrives_is_unavailable(store, monkeypatch):
    tracking = Tracking(store.uri, artifact_root=str(store.artifacts))

    def never_arrives(*_args, **_kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tracking.client, "create_model_version", never_arrives)
    with tracking.run("never", tags={}) as run, pytest.raises(Unavailable, match="no route to host"):
        tracking.register("never", run, source_sha256="abc")
    assert not store.client.search_model_versions("name='never'")


@pytest.mark.timeout(60)  # by itself MLflow's client goes on for four minutes
def test_a_server_that_does_not_answer_is_unavailable(monkeypatch):
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9"):
        train("digits", QUICK, tracking_uri="http://127.0.0.1:9")


def test_every_variant_is_certified_and_attached(store, trained, exported):
    version = trained[0].model_version
    assert list(exported.certificates) == ["onnx-fp32", "onnx-int8-static", "torchscript-fp32"]
    for certificate in exported.certificates.values():
        assert certificate.passed, certificate.failures
    passing = {name: c.facts["latency"]["batch_1"]["p50_ms"] for name, c in exported.certificates.items()}
    assert passing[exported.chosen] == min(passing.values())
    info = MlflowRegistry(store.uri).version(version)
    assert info.bundle is not None
    assert info.bundle_sha256 == exported.bundle.sha256
    assert info.tags[CHOSEN_TAG] == exported.chosen
    metrics = store.client.get_run(trained[0].run_id).data.metrics
    assert metrics["export/onnx-fp32/passed"] == 1.0
    assert metrics["export/onnx-int8-static/quantized_nodes"] == 4.0


def test_the_bundle_comes_back_from_the_registry_and_meets_its_golden_set(store, trained, exported, tmp_path):
    bundle = Bundle.open(MlflowRegistry(store.uri).fetch_bundle(trained[0].model_version, tmp_path / "fetched"))
    assert bundle.sha256 == exported.bundle.sha256
    assert str(bundle.signature().inputs[0]) == "image: FP32[-1, 1, 8, 8]"
    assert str(bundle.signature().outputs[0]) == "logits: FP32[-1, 10]"
    golden = np.load(bundle.root / "golden.npz", allow_pickle=False)
    assert golden["in/image"].shape == (16, 1, 8, 8)
    for variant in bundle.variants():
        runner = open_variant(bundle.variant_dir(variant), bundle.signature())
        answer = runner.run({"image": golden["in/image"]})["logits"]
        np.testing.assert_allclose(answer, golden["out/logits"], **bundle.tolerance(variant)["logits"])
        assert not np.allclose(answer[::-1], golden["out/logits"], **bundle.tolerance(variant)["logits"])
    profile = json.loads((bundle.root / "profile.json").read_text())
    assert profile["num_rows"] == sum(profile["classes"]["true"]) == 360
    assert profile["inputs"]["image"]["quantiles"]["1.0"] == 16.0


def test_a_variant_that_fails_stays_in_the_bundle_with_its_certificate(store, trained, tmp_path, monkeypatch):
    from training.export.variants import onnx_int8_static

    strict = onnx_int8_static.Limits(max_error=1e-9, mean_error=1e-9, row_error=0.01, min_agreement=0.97)
    monkeypatch.setattr(onnx_int8_static.OnnxInt8Static, "limits", strict)
    report = _export(store, trained[0].model_version, tmp_path, variants=["onnx-int8-static"])
    certificate = report.certificates["onnx-int8-static"]
    assert not certificate.passed
    assert report.chosen is None
    assert report.bundle.certificate("onnx-int8-static").failures == certificate.failures
    assert any("parity/logits/max_abs_error" in failure for failure in certificate.failures)


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize(
    ("version", "variants", "words"),
    [
        (ModelVersion("digits", 999), None, "999"),
        (ModelVersion("no-such-model", 1), None, "no-such-model"),
        (ModelVersion("digits", 1), ["onnx-fp64"], "onnx-int8-static"),
    ],
)
def test_what_does_not_exist_is_named(store, tmp_path, version, variants, words):
    with pytest.raises(NotFound, match=words):
        _export(store, version, tmp_path, variants=variants)


def test_a_version_whose_files_cannot_be_had_is_refused(store, tmp_path):
    with pytest.raises(Unavailable, match=r"files cannot be fetched \(s3://elsewhere/model: no module"):
        _export(store, store.register("foreign", with_run=False), tmp_path)


def test_changed_weights_are_refused(store, tmp_path):
    version = _train(store, overrides=[*QUICK, "name=tampered", "trainer.max_epochs=1"])
    directory = store.artifacts / "tampered" / version.run_id / "artifacts" / "model"
    weights = bytearray((directory / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (directory / "weights.safetensors").write_bytes(weights)
    with pytest.raises(Corrupt, match=r"weights\.safetensors"):
        _export(store, version.model_version, tmp_path)


def test_other_data_than_at_training_are_refused(store, trained, tmp_path, monkeypatch):
    monkeypatch.setattr("training.data.digits_module.DigitsDataModule.digest", lambda self: "f" * 64)
    with pytest.raises(Corrupt, match="the data are not those"):
        _export(store, trained[0].model_version, tmp_path)


OWN_CODE = '''
import lightning, torch
from torch.utils.data import DataLoader, TensorDataset

class Curve(lightning.LightningDataModule):
    """y = sum of squares of four numbers, without a digest and without test data of its own name."""
    def __init__(self, rows: int = 512):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.x = torch.rand(rows, 4, generator=generator) * 2 - 1
        self.y = (self.x ** 2).sum(dim=1, keepdim=True)
    def train_dataloader(self):
        return DataLoader(TensorDataset(self.x[:-128], self.y[:-128]), batch_size=32, shuffle=True)
    def val_dataloader(self):
        return DataLoader(TensorDataset(self.x[-128:], self.y[-128:]), batch_size=32)

class Bare(torch.nn.Module):
    def __init__(self, hidden: int = 16):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 1))
    def forward(self, features):
        return self.layers(features)

class Own(lightning.LightningModule):
    def __init__(self, hidden: int = 16, rate: float = 1e-2):
        super().__init__()
        self.save_hyperparameters()
        self.net = Bare(hidden)
    def forward(self, features):
        return {"total": self.net(features)}
    def training_step(self, batch, batch_idx):
        loss = torch.nn.functional.mse_loss(self(batch[0])["total"], batch[1])
        self.log("my_loss", loss, on_epoch=True, on_step=False)
        return loss
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.rate)
'''


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    """A user's package and recipe in the working directory; ours is not touched."""
    (tmp_path / "own_curve.py").write_text(OWN_CODE)
    recipe = {
        "name": "curve",
        "task": "regression",
        "model": {"class_path": "own_curve.Bare"},
        "data": {"class_path": "own_curve.Curve"},
        "trainer": {"max_epochs": 20, "accelerator": "cpu"},
        "optimizer": {"learning_rate": 0.02},
        "export": {"variants": ["onnx-fp32", "torchscript-fp32"]},
    }
    (tmp_path / "curve.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("own_curve", None)
    if str(tmp_path) in sys.path:
        sys.path.remove(str(tmp_path))


@pytest.mark.parametrize(("class_path", "output"), [("own_curve.Bare", "prediction"), ("own_curve.Own", "total")])
# The user's validation data without a validation_step is Lightning's business to mention.
@pytest.mark.filterwarnings("ignore:.*you passed in a `val_dataloader` but have no `validation_step`.*")
def test_a_users_own_model_and_data_need_no_change_of_ours(store, own_code, class_path, output):
    version = _train(store, "curve.yaml", [f"model.class_path={class_path}", f"name={output}"])
    assert version.metrics["r2"] > 0.3
    report = _export(store, version.model_version, own_code / "work")
    for certificate in report.certificates.values():
        assert certificate.passed, certificate.failures
    assert [spec.name for spec in report.bundle.signature().inputs] == ["features"]
    assert [spec.name for spec in report.bundle.signature().outputs] == [output]
    assert "r2_drop" in {check.name for check in report.certificates["onnx-fp32"].checks}


def test_no_artifact_of_training_is_a_pickle(store, trained):
    version, _ = trained
    root = Path(store.client.download_artifacts(version.run_id, ""))
    names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    names = [name for name in names if not name.startswith("bundles/")]  # TorchScript's own format has a data.pkl, which is not unpickled
    members = []
    for name in names:
        if zipfile.is_zipfile(root / name):
            with zipfile.ZipFile(root / name) as archive:
                members += [f"{name}!{member}" for member in archive.namelist()]
    assert "model/data/model.pt2" in names
    assert any(member.startswith("model/data/model.pt2!") for member in members)
    assert not [n for n in [*names, *members] if n.endswith((".pkl", ".pickle", ".ckpt", ".pth", "data.pkl"))]


def test_the_same_through_a_tracking_server(tmp_path):
    store = new_store(tmp_path / "mlflow")
    with serve(store) as server:
        version = train("digits", [*QUICK, "trainer.max_epochs=1"], tracking_uri=server.url)
        report = export_version(
            version.model_version,
            MlflowRegistry(server.url),
            tracking_uri=server.url,
            workdir=tmp_path / "work",
            variants=["onnx-fp32"],
        )
        info = MlflowRegistry(server.url).version(version.model_version)
    assert version.model_version == ModelVersion("digits", 1)
    assert info.bundle_sha256 == report.bundle.sha256
