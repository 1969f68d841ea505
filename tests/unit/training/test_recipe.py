"""Recipes: read, overridden, refused with the key, the value and what is allowed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from registry.errors import NotFound, UsageError
from training.recipe import dump_recipe, load_recipe, parse_recipe, recipe_names

MINIMAL = """
name: mine
model: {class_path: my_package.Net}
data: {class_path: my_package.Data}
"""


def test_the_built_in_recipes_are_listed_and_load():
    assert "digits" in recipe_names()
    for name in recipe_names():
        assert load_recipe(name).name == name


def test_listing_recipes_imports_neither_torch_nor_mlflow():
    code = (
        "import sys, training, training.recipe as r; r.load_recipe(r.recipe_names()[0]);"
        "bad = {'torch', 'mlflow', 'lightning', 'sklearn'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_recipe_survives_being_written_out_and_read_again():
    recipe = load_recipe("digits", ["export.max_relative_error={onnx-fp32: 1e-3}", "export.outputs=[scores]"])
    assert parse_recipe(dump_recipe(recipe)) == recipe


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("model.init_args.width=32", lambda r: r.model.init_args["width"] == 32),
        ("optimizer.learning_rate=1e-2", lambda r: r.optimizer.learning_rate == 0.01),
        ("optimizer.learning_rate=1", lambda r: r.optimizer.learning_rate == 1.0),
        ("export.variants=[onnx-fp32]", lambda r: r.export.variants == ("onnx-fp32",)),
        ("data.init_args.text=a=b", lambda r: r.data.init_args["text"] == "a=b"),
        ("trainer.limit_val_batches=null", lambda r: r.trainer.limit_val_batches is None),
        ("trainer.deterministic=false", lambda r: r.trainer.deterministic is False),
    ],
)
def test_an_override_sets_a_dotted_key_to_a_yaml_value(override, read):
    assert read(load_recipe("digits", [override]))


def test_an_override_makes_the_section_that_is_not_there():
    assert parse_recipe(MINIMAL, ["trainer.max_epochs=3"]).trainer.max_epochs == 3


def test_later_overrides_win():
    assert load_recipe("digits", ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.max_epoch=3", ("trainer.max_epoch)", "Did you mean trainer.max_epochs?", "accelerator")),
        ("optimiser.learning_rate=1", ("(optimiser)", "Did you mean optimizer?")),
        ("trainer.max_epochs=many", ("trainer.max_epochs", "'many'", "a whole number")),
        ("trainer.max_epochs=2.5", ("trainer.max_epochs", "2.5", "a whole number")),
        ("trainer.max_epochs=0", ("trainer.max_epochs", "(0)", "1 or more")),
        ("trainer.num_cpu_threads=0", ("trainer.num_cpu_threads", "(0)", "or null")),
        ("trainer.accelerator=abacus", ("trainer.accelerator", "abacus", "auto, cpu or gpu")),
        ("task=guessing", ("task", "guessing", "classification or regression")),
        ("seed=-1", ("seed", "-1", "4294967295")),
        ("name=a b", ("invalid model name", "a b")),
        ("name=null", ("missing", "(name)")),
        ("model=3", ("model", "3", "class_path, init_args")),
        ("model.class_path=Net", ("class_path", "'Net'", "package.module.Class")),
        ("model.init_args=3", ("model.init_args", "a mapping")),
        ("export.variants=onnx-fp32", ("export.variants", "'onnx-fp32'", "a list")),
        ("export.variants=[]", ("export.variants", "at least one")),
        ("export.variants=[ONNX]", ("invalid variant", "ONNX")),
        ("export.accuracy_drop=1.5", ("export.accuracy_drop", "1.5", "0 to 1")),
        ("export.calibration_rows=1", ("export.calibration_rows", "8 or more")),
        ("export.max_relative_error.onnx-fp32=2", ("export.max_relative_error.onnx-fp32", "(2")),
        ("optimizer.learning_rate=0", ("optimizer.learning_rate", "above 0")),
        ("seed=[", ("value of seed", "not valid YAML")),
        ("no equals sign", ("not an override", "KEY=VALUE")),
        ("=3", ("not an override",)),
        ("a..b=3", ("not an override",)),
        ("seed.more=3", ("seed is a value",)),
    ],
)
def test_a_bad_override_is_refused_in_words(override, words):
    with pytest.raises(UsageError) as caught:
        load_recipe("digits", [override])
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["- a list", "", "a: [", "3", "? !!python/object/apply:os.system [ls]\n: 1"])
def test_a_text_that_is_no_recipe_is_refused(text):
    with pytest.raises(UsageError):
        parse_recipe(text)


@pytest.mark.parametrize("source", ["digit", "no/such/file.yaml", "missing.yaml", ""])
def test_an_unknown_recipe_names_the_ones_there_are(source):
    with pytest.raises(NotFound, match="digits"):
        load_recipe(source)


def test_a_recipe_file_is_read_by_path(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text(MINIMAL)
    assert load_recipe(str(tmp_path / "mine.yaml")).name == "mine"
    monkeypatch.chdir(tmp_path)
    assert load_recipe("mine.yaml").name == "mine"


def test_a_binary_file_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot read the recipe"):
        load_recipe(str(tmp_path / "mine.yaml"))
