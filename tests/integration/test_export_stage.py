"""The story of an export on a real MLflow store: what fits, what is chosen, what is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from registry.errors import UsageError
from registry.mlflow_registry import MlflowRegistry
from support.mlflow_store import MLFLOW_WARNINGS, new_store
from training.export.catalog import EXPORTERS
from training.export.stage import CHOSEN_TAG, NONE_PASSED, export_version
from training.pipeline import train

pytestmark = [pytest.mark.integration, *MLFLOW_WARNINGS]

LABELS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return new_store(tmp_path_factory.mktemp("store") / "mlflow")


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    """Pixels of digits are 0 to 16; a JPEG's are 0 to 255."""
    directory = tmp_path_factory.mktemp("serving")
    image = {"kind": "image", "input": "image", "size": [8, 8], "resize": "exact", "color": "L", "scale": 16 / 255}
    labels = {"kind": "labels", "output": "logits", "labels": LABELS, "top_k": 3, "activation": "softmax"}
    (directory / "transforms.json").write_text(json.dumps({"inputs": [image], "outputs": [labels]}))
    return directory


@pytest.fixture(scope="module")
def trained(store, serving):
    overrides = ["trainer.max_epochs=2", "model.init_args.width=8", "export.variants=null", f"export.serving={serving}"]
    return train("digits", overrides, tracking_uri=store.uri, artifact_root=str(store.artifacts))


def _export(store, trained, workdir, **options):
    return export_version(trained.model_version, MlflowRegistry(store.uri), tracking_uri=store.uri, workdir=workdir, **options)


@pytest.fixture(scope="module")
def exported(store, trained, tmp_path_factory):
    return _export(store, trained, tmp_path_factory.mktemp("work"))


def test_without_names_every_variant_is_made_or_left_out_with_a_reason(exported):
    assert set(exported.certificates) | set(exported.left_out) == {exporter.name for exporter in EXPORTERS}
    assert set(exported.certificates).isdisjoint(exported.left_out)
    assert {"onnx-fp32", "onnx-int8-static", "torchscript-fp32"} <= set(exported.certificates)
    assert "onnx-fp16" in exported.left_out  # there is no GPU in its target
    assert all(len(reason) > 5 for reason in exported.left_out.values())
    for certificate in exported.certificates.values():
        assert certificate.passed, certificate.failures
    assert set(exported.seconds) == {"model", *exported.certificates}


def test_the_report_and_the_numbers_are_in_the_run(store, trained, exported):
    version = trained.model_version
    path = f"export/{version.model}-{version.version}/report.html"
    logged = store.client.download_artifacts(trained.run_id, path)
    page = Path(logged).read_text(encoding="utf-8")
    assert page == exported.report.read_text(encoding="utf-8")
    assert all(variant in page for variant in exported.certificates)
    metrics = store.client.get_run(trained.run_id).data.metrics
    assert {f"export/{variant}/latency/batch_32/rows_per_s" for variant in exported.certificates} <= set(metrics)


def test_the_directory_of_transforms_travels_with_the_version(exported, serving):
    kept = exported.bundle.root / "serving" / "transforms.json"
    assert kept.read_bytes() == (serving / "transforms.json").read_bytes()


def test_a_transform_that_does_not_fit_the_model_is_refused(store, serving, tmp_path):
    document = json.loads((serving / "transforms.json").read_text())
    document["outputs"][0]["labels"] = LABELS[:9]
    (tmp_path / "transforms.json").write_text(json.dumps(document))
    overrides = ["name=nine", "trainer.max_epochs=1", "model.init_args.width=4", f"export.serving={tmp_path}"]
    version = train("digits", overrides, tracking_uri=store.uri, artifact_root=str(store.artifacts))
    with pytest.raises(UsageError, match="9 labels"):
        _export(store, version, tmp_path / "work", variants=["onnx-fp32"])


def test_a_variant_that_is_named_and_does_not_fit_is_refused_before_anything_is_made(store, trained, tmp_path):
    with pytest.raises(UsageError, match=r"do not fit digits/1 \(onnx-fp16: "):
        _export(store, trained, tmp_path, variants=["onnx-fp32", "onnx-fp16"])
    assert not list(tmp_path.rglob("certificate.json"))


def test_a_latency_goal_that_no_variant_meets_leaves_none(store, trained, tmp_path):
    report = _export(store, trained, tmp_path, variants=["onnx-fp32"], latency_p99_ms=1e-6)
    assert report.chosen is None
    (failure,) = report.certificates["onnx-fp32"].failures
    assert failure.startswith("latency/batch_1/p99_ms")
    assert MlflowRegistry(store.uri).version(trained.model_version).tags[CHOSEN_TAG] == NONE_PASSED
