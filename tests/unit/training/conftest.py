"""A model trained for two epochs on the real digits: half a second, and its logits are far apart."""

from __future__ import annotations

import pytest

from support.planted import VERSION
from training.components import build_data, build_model, resolve_recipe
from training.data.batches import data_digest, prepare
from training.export import stage
from training.fit import fit, seed_all
from training.recipe import load_recipe
from training.source.trained import TrainedSource


@pytest.fixture(scope="session")
def trained() -> TrainedSource:
    recipe = resolve_recipe(load_recipe("digits", ["trainer.max_epochs=3", "model.init_args.width=8"]))
    seed_all(recipe.seed)
    data = prepare(build_data(recipe.data))
    model = build_model(recipe.model)
    fit(model, data, recipe, on_epoch=lambda epoch, metrics: None)
    return TrainedSource(model=model, recipe=recipe, weights_sha256="0" * 64, data_sha256=data_digest(data, model))


@pytest.fixture(scope="module")
def measured(trained, tmp_path_factory):
    """Reference and context of the trained model; the context's graphs are made once for all tests of a module."""
    return stage.measure_eager(trained, trained.recipe.export, scratch=tmp_path_factory.mktemp("scratch"))


@pytest.fixture
def measured_of(trained, measured, tmp_path):
    """Certifies an exporter, whose files a fault may have been planted in: what was measured of it."""
    reference, context = measured

    def measure(exporter, *, source=trained, reference=reference, context=context, config=trained.recipe.export):
        if (reason := exporter.unfit(source.model, context)) is not None:
            pytest.skip(f"{exporter.name}: {reason}")
        return stage.export_variant(
            exporter, source, version=VERSION, config=config, reference=reference, context=context, directory=tmp_path / "variant"
        )

    return measure


@pytest.fixture
def certificate_of(measured_of):
    """The same: its certificate."""
    return lambda exporter, **changes: measured_of(exporter, **changes).certificate


@pytest.fixture
def short_latency(monkeypatch):
    """As few calls as there can be, for tests that are not about time."""
    monkeypatch.setattr("training.export.certificate.latency._SECONDS_PER_BLOCK", 0.0)
    monkeypatch.setattr("training.export.certificate.latency._WARM_UP_SECONDS", 0.0)
