"""The files of a version: back again bit for bit, no pickle among them, no change unnoticed."""

from __future__ import annotations

import dataclasses
import json
import pickletools
import zipfile

import pytest
import torch

from registry.bundle import write_manifest
from registry.errors import Corrupt, UsageError
from training.source.opening import open_source
from training.source.trained import MODEL, PROGRAM, RECIPE, WEIGHTS, export_program, write_source

EXAMPLE = {"image": torch.rand(2, 1, 8, 8) * 16}


@pytest.fixture
def written(trained, tmp_path):
    directory = tmp_path / "source"
    write_source(directory, trained.model, recipe=trained.recipe, inputs=EXAMPLE, data_sha256=trained.data_sha256)
    return directory, write_manifest(directory)


def test_the_model_comes_back_bit_for_bit(trained, written):
    directory, sha256 = written
    source = open_source(directory, expected_sha256=sha256)
    assert source.recipe == trained.recipe
    assert source.data_sha256 == trained.data_sha256
    assert not source.model.training
    for name, tensor in trained.model.state_dict().items():
        assert torch.equal(tensor, source.model.state_dict()[name]), name


def test_weights_of_the_same_model_are_the_same_file(trained, written, tmp_path):
    directory, _ = written
    again = write_source(tmp_path / "again", trained.model, recipe=trained.recipe, inputs=EXAMPLE, data_sha256="")
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (directory / WEIGHTS).read_bytes()
    assert len(again) == 64


def test_the_program_computes_the_same_for_any_batch(trained, written):
    program = torch.export.load(written[0] / PROGRAM).module()
    for size in (1, 2, 7):
        image = torch.rand(size, 1, 8, 8) * 16
        torch.testing.assert_close(program(image), trained.model(image))


def _is_pickle(content: bytes) -> bool:
    try:
        opcodes = [opcode.name for opcode, _, _ in pickletools.genops(content)]
    except Exception:
        return False
    return opcodes[:1] == ["PROTO"] and opcodes[-1:] == ["STOP"]


def test_there_is_no_pickle_in_any_file(written):
    contents = []
    for path in written[0].rglob("*"):
        if path.is_file():
            contents.append(path.read_bytes())
        if path.is_file() and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                contents += [archive.read(name) for name in archive.namelist()]
                assert not any(zipfile.is_zipfile(archive.open(name)) for name in archive.namelist())  # torch.save writes one
    assert len(contents) > 10
    assert not any(_is_pickle(content) for content in contents)


def test_the_search_for_pickles_finds_one(tmp_path):
    torch.save({"a": 1}, tmp_path / "pickled.pt")
    with zipfile.ZipFile(tmp_path / "pickled.pt") as archive:
        assert any(_is_pickle(archive.read(name)) for name in archive.namelist())


@pytest.mark.parametrize("name", [WEIGHTS, PROGRAM, MODEL, RECIPE])
def test_one_flipped_bit_is_refused(written, name):
    directory, sha256 = written
    content = bytearray((directory / name).read_bytes())
    content[len(content) // 2] ^= 1
    (directory / name).write_bytes(content)
    with pytest.raises(Corrupt, match=name):
        open_source(directory, expected_sha256=sha256)


def test_another_manifest_is_refused_even_if_it_fits_the_files(written):
    directory, sha256 = written
    (directory / MODEL).write_text(json.dumps({"class_path": "a.B", "init_args": {}, "data_sha256": ""}))
    write_manifest(directory)
    with pytest.raises(Corrupt, match="wrong digest of the version's source"):
        open_source(directory, expected_sha256=sha256)


def test_a_missing_manifest_is_refused(written):
    directory, sha256 = written
    (directory / "MANIFEST.json").unlink()
    with pytest.raises(Corrupt, match="no MANIFEST"):
        open_source(directory, expected_sha256=sha256)


def test_a_class_that_changed_since_is_refused_in_words(trained, tmp_path):
    wider = dataclasses.replace(trained.recipe.model, init_args={**trained.recipe.model.init_args, "width": 9})
    recipe = dataclasses.replace(trained.recipe, model=wider)
    write_source(tmp_path, trained.model, recipe=recipe, inputs=EXAMPLE, data_sha256="")
    with pytest.raises(UsageError, match="no longer fits the version's weights"):
        open_source(tmp_path, expected_sha256=write_manifest(tmp_path))


def test_a_model_with_a_fixed_batch_is_refused_before_training():
    class Fixed(torch.nn.Module):
        def forward(self, x):
            return x.reshape(2, -1) * 2

    with pytest.raises(UsageError, match="cannot be exported"):
        export_program(Fixed(), {"x": torch.rand(2, 3)})
