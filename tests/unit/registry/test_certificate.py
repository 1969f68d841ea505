"""Certificates: what passes, what the reasons say, what the file holds."""

from __future__ import annotations

import json
from math import inf, isnan, nan

import pytest

from registry.bundle import canonical_json
from registry.certificate import Certificate, Check
from registry.errors import UsageError
from registry.names import ModelVersion

GOOD = Check(name="parity/y/max_abs_error", passed=True, value=0.001, limit=0.01)
BAD = Check(name="accuracy", passed=False, value=0.9123456, limit=0.95, relation=">=", detail="360 samples")


def certificate(*checks: Check) -> Certificate:
    return Certificate(version=ModelVersion("digits", 3), source_sha256="0" * 64, variant="onnx-fp32", checks=checks)


@pytest.mark.parametrize(
    ("checks", "passed", "failures"),
    [
        ((), False, ("nothing was checked",)),
        ((GOOD,), True, ()),
        ((GOOD, BAD), False, ("accuracy 0.912346 < 0.95 (360 samples)",)),
    ],
)
def test_it_passes_if_something_was_checked_and_nothing_failed(checks, passed, failures):
    assert certificate(*checks).passed is passed
    assert certificate(*checks).failures == failures


def test_a_check_reads_as_what_it_found():
    assert str(GOOD) == "parity/y/max_abs_error 0.001 <= 0.01"
    assert str(Check(name="n", passed=False, value=1, limit=2, relation="==")) == "n 1 != 2"
    assert str(Check(name="n", passed=False, value=nan, limit=2)) == "n nan > 2"


@pytest.mark.parametrize(
    ("value", "limit", "relation"),
    [(2, 1, "<="), (1, 2, ">="), (1, 2, "=="), (nan, 1, "<="), (1, nan, "<="), (nan, nan, "=="), (inf, 1, "<=")],
)
def test_a_check_cannot_have_passed_against_its_own_numbers(value, limit, relation):
    with pytest.raises(UsageError, match="check n did not pass"):
        Check(name="n", passed=True, value=value, limit=limit, relation=relation)
    assert not Check(name="n", passed=False, value=value, limit=limit, relation=relation).passed


def test_an_unknown_relation_is_refused():
    with pytest.raises(UsageError, match="unknown relation"):
        Check(name="n", passed=False, value=1, limit=2, relation="<")


def test_it_comes_back_from_json():
    made = Certificate(
        version=ModelVersion("digits", 3), source_sha256="0" * 64, variant="onnx-fp32", checks=(GOOD, BAD), facts={"size_bytes": 7}
    )
    data = json.loads(canonical_json(made.to_json()))
    assert data["passed"] is False
    assert Certificate.from_json(data) == made


def test_passed_is_derived_again_never_read():
    data = {**certificate(GOOD, BAD).to_json(), "passed": True}
    assert not Certificate.from_json(data).passed
    forged = certificate(BAD).to_json()
    forged["checks"][0]["passed"] = True
    with pytest.raises(UsageError, match="accuracy did not pass"):
        Certificate.from_json(forged)


def test_numbers_that_json_does_not_have_come_back():
    for value, limit in ((nan, 1.0), (inf, 1.0), (1.0, nan)):
        check = Check(name="n", passed=False, value=value, limit=limit)
        back = Check.from_json(json.loads(canonical_json(check.to_json())))
        assert (isnan(back.value), isnan(back.limit)) == (isnan(value), isnan(limit))
        assert str(back) == str(check)
