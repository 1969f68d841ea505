"""How models, versions, channels and variants are written."""

from __future__ import annotations

import pytest

from registry.errors import UsageError
from registry.names import ModelAlias, ModelVersion, check_channel, check_model_name, check_variant, parse_model_ref, parse_model_version


@pytest.mark.parametrize("name", ["digits", "d", "9lives", "a_b.c-D", "x" * 100])
def test_a_model_name_that_fits_everywhere_is_taken(name: str):
    assert check_model_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "x" * 101, ".", "..", "-x", "_x", "a/b", "a:b", "a@b", "a b", "a\n", "ä", "a%2f", "a'", "a\x00"], ids=repr
)
def test_any_other_model_name_is_refused(name: str):
    with pytest.raises(UsageError, match="invalid model name"):
        check_model_name(name)


@pytest.mark.parametrize("channel", ["production", "staging", "canary-2", "version", "v", "v1a", "latest-good"])
def test_a_channel_is_taken(channel: str):
    assert check_channel(channel) == channel


@pytest.mark.parametrize("channel", ["", "Production", "latest", "v1", "v22", "1st", "a b", "a/b", "x" * 51, "production\n"], ids=repr)
def test_what_mlflow_reserves_or_cannot_be_in_a_header_is_no_channel(channel: str):
    with pytest.raises(UsageError, match="invalid channel"):
        check_channel(channel)


def test_variants():
    assert check_variant("onnx-int8-static") == "onnx-int8-static"
    for variant in ("", "ONNX", "-a", "a_b", "a/b", "x" * 51, "a\n"):
        with pytest.raises(UsageError, match="invalid variant"):
            check_variant(variant)


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("digits/3", ModelVersion("digits", 3)),
        ("models:/digits/3", ModelVersion("digits", 3)),
        ("digits/003", ModelVersion("digits", 3)),
        ("digits@production", ModelAlias("digits", "production")),
        ("models:/digits@staging", ModelAlias("digits", "staging")),
    ],
)
def test_references_are_parsed(text: str, ref: ModelVersion | ModelAlias):
    assert parse_model_ref(text) == ref
    assert parse_model_ref(str(ref)) == ref


@pytest.mark.parametrize(
    "text",
    [
        *(
            "digits",
            "digits/",
            "/3",
            "digits/x",
            "digits/-1",
            "digits/+1",
            "digits/1.0",
            "digits/1/2",
            "digits/ 1",
            "digits/1\n",
            "digits/٣",
        ),
        *("digits/0", "digits/2147483648", "digits/" + "9" * 5000, "", "@", "digits@", "@production", "digits@Prod", "digits@a@b"),
        *("models:/models:/digits/3", "runs:/digits/3"),
    ],
    ids=lambda text: repr(text)[:20],
)
def test_anything_else_is_a_usage_error(text: str):
    with pytest.raises(UsageError):
        parse_model_ref(text)


def test_an_alias_is_no_exact_version():
    assert parse_model_version("digits/3") == ModelVersion("digits", 3)
    with pytest.raises(UsageError, match="an exact version is needed"):
        parse_model_version("digits@production")


def test_versions_are_ordered_as_numbers():
    assert sorted([ModelVersion("a", 10), ModelVersion("b", 1), ModelVersion("a", 9)])[0] == ModelVersion("a", 9)
