"""A model trained for two epochs on the real digits: half a second, and its logits are far apart."""

from __future__ import annotations

import pytest

from training.components import build_data, build_model, resolve_recipe
from training.data.batches import data_digest, prepare
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
