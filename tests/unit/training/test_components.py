"""Classes named by a recipe: found, checked, made."""

from __future__ import annotations

import sys

import pytest
import torch

from registry.errors import UsageError
from training.components import build_data, build_model, resolve_recipe
from training.recipe import ComponentConfig, load_recipe

OWN_MODULE = """
import torch

class Net(torch.nn.Module):
    def __init__(self, width: int, bias: bool = True):
        super().__init__()
        if width > 100:
            raise RuntimeError("too wide")
        self.linear = torch.nn.Linear(width, 2, bias=bias)

not_a_class = 3
"""


@pytest.fixture
def own_package(tmp_path, monkeypatch):
    """A module that exists in the working directory only."""
    (tmp_path / "own_nets.py").write_text(OWN_MODULE)
    (tmp_path / "own_broken.py").write_text("raise ZeroDivisionError('at import')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield
    for name in ("own_nets", "own_broken"):
        sys.modules.pop(name, None)


def test_defaults_of_constructors_are_written_out():
    recipe = resolve_recipe(load_recipe("digits", ["model.init_args={}"]))
    assert recipe.model.init_args == {"width": 16, "num_classes": 10, "dropout": 0.2}
    assert recipe.data.init_args == {"batch_size": 64, "split_seed": 0}


def test_arguments_arrive():
    model = build_model(ComponentConfig(class_path="torch.nn.Linear", init_args={"in_features": 3, "out_features": 2}))
    assert isinstance(model, torch.nn.Linear)
    assert model.weight.shape == (2, 3)


def test_a_class_of_the_working_directory_is_found(own_package):
    model = build_model(ComponentConfig(class_path="own_nets.Net", init_args={"width": 5}))
    assert model.linear.weight.shape == (2, 5)


@pytest.mark.parametrize(
    ("class_path", "init_args", "words"),
    [
        ("no_such_package.Net", {}, ("model.class_path", "no module no_such_package", "working directory|run in the directory")),
        ("own_nets.Nett", {}, ("own_nets has no Nett",)),
        ("own_nets.not_a_class", {}, ("wrong kind", "torch.nn.modules.module.Module")),
        ("own_broken.Net", {}, ("ZeroDivisionError", "at import")),
        ("os.system", {"command": "true"}, ("wrong kind",)),
        ("builtins.dict", {}, ("wrong kind",)),
        ("training.data.digits_module.DigitsDataModule", {}, ("wrong kind",)),
        ("own_nets.Net", {"widht": 3}, ("model.init_args.widht", "Did you mean model.init_args.width?", "width, bias")),
        ("own_nets.Net", {"width": "wide"}, ("width", "wide", "int")),
        ("own_nets.Net", {}, ("own_nets.Net", "width: int")),
        ("own_nets.Net", {"width": 101}, ("RuntimeError", "too wide", "model.init_args")),
    ],
)
def test_a_class_that_does_not_fit_is_refused_in_words(own_package, class_path, init_args, words):
    with pytest.raises(UsageError) as caught:
        build_model(ComponentConfig(class_path=class_path, init_args=init_args))
    for word in words:
        assert any(option in str(caught.value) for option in word.split("|")), str(caught.value)


def test_data_must_be_a_data_module():
    with pytest.raises(UsageError, match=r"data\.class_path is of the wrong kind"):
        build_data(ComponentConfig(class_path="torch.nn.Linear"))
