"""Training: it learns, it is repeatable, and it leaves no trace in the process."""

from __future__ import annotations

import lightning
import pytest
import torch

from registry.errors import UsageError
from training.components import build_data, build_model
from training.data.batches import prepare
from training.fit import fit, seed_all
from training.models.cnn import SmallCNN
from training.recipe import load_recipe

QUICK = ["trainer.max_epochs=2", "model.init_args.width=4", "trainer.limit_train_batches=5"]


def _fit(overrides=(), model=None):
    recipe = load_recipe("digits", [*QUICK, *overrides])
    seed_all(recipe.seed)
    data = prepare(build_data(recipe.data))
    model = model or build_model(recipe.model)
    history = []
    fit(model, data, recipe, on_epoch=lambda epoch, metrics: history.append((epoch, dict(metrics))))
    return model, history


def test_the_same_seed_gives_the_same_weights_bit_for_bit():
    first, second, other = _fit()[0], _fit()[0], _fit(["seed=8"])[0]
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    assert not torch.equal(first.classifier[1].weight, other.classifier[1].weight)


def test_every_epoch_is_reported_with_its_metrics():
    _, history = _fit()
    assert [epoch for epoch, _ in history] == [1, 2]
    assert all({"train_loss", "val_loss", "val_accuracy"} <= set(metrics) for _, metrics in history)
    assert history[1][1]["train_loss"] < history[0][1]["train_loss"]


def test_a_model_in_evaluation_mode_is_trained_in_training_mode():
    model = build_model(load_recipe("digits", QUICK).model).eval()
    _fit(model=model)
    assert int(model.features[1].num_batches_tracked) == 10
    assert not model.training


def test_deterministic_algorithms_are_left_as_they_were():
    assert not torch.are_deterministic_algorithms_enabled()
    _fit()
    assert not torch.are_deterministic_algorithms_enabled()


def test_threads_are_those_of_the_recipe_and_then_as_before():
    before, seen = torch.get_num_threads(), []

    class Looks(SmallCNN):
        def forward(self, image):
            seen.append(torch.get_num_threads())
            return super().forward(image)

    _fit(["trainer.num_cpu_threads=1"], model=Looks(width=4))
    assert set(seen) == {1}
    assert torch.get_num_threads() == before


def test_nothing_is_written_to_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _fit()
    assert list(tmp_path.iterdir()) == []


def test_a_module_without_an_optimizer_step_is_refused():
    class Unfinished(lightning.LightningModule):
        def forward(self, image):
            return image

    with pytest.raises(UsageError, match="cannot be trained"):
        _fit(model=Unfinished())
