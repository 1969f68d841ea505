"""What may be promoted, and as which variant."""

from __future__ import annotations

import pytest

from registry.certificate import Certificate, Check
from registry.errors import NotFound, Refused
from registry.gates import check_promotion, choose_variant, fastest_passing
from registry.names import ModelVersion
from registry.signature import Signature, TensorSpec

INPUT, OUTPUT = TensorSpec("x", "FP32", (-1, 4)), TensorSpec("y", "FP32", (-1, 3))
SIGNATURE = Signature(inputs=(INPUT,), outputs=(OUTPUT,))
WIDER = Signature(inputs=(TensorSpec("x", "FP32", (-1, 5)),), outputs=(OUTPUT,))


def certificate(*, passed: bool = True, p50_ms: float | None = 1.0, variant: str = "onnx-fp32") -> Certificate:
    check = Check(name="parity/y/max_abs_error", passed=passed, value=0.5, limit=1.0 if passed else 0.1)
    facts = {"latency": {"batch_1": {"p50_ms": p50_ms}}} if p50_ms is not None else {}
    return Certificate(version=ModelVersion("m", 1), source_sha256="0" * 64, variant=variant, checks=(check,), facts=facts)


def refusals(
    *, passed: bool = True, new: Signature = SIGNATURE, live: Signature | None = SIGNATURE, allow: bool = False
) -> tuple[str, ...]:
    return check_promotion(certificate=certificate(passed=passed), new=new, live=live, allow_signature_change=allow)


def test_a_passing_certificate_and_the_same_signature_pass():
    assert refusals() == ()
    assert refusals(live=None) == ()


def test_a_failed_certificate_is_refused_with_its_numbers_whatever_else_is_allowed():
    assert refusals(passed=False, allow=True) == ("certificate of onnx-fp32: parity/y/max_abs_error 0.5 > 0.1",)


def test_a_certificate_without_checks_is_refused():
    empty = Certificate(version=ModelVersion("m", 1), source_sha256="0" * 64, variant="onnx-fp32", checks=())
    assert check_promotion(certificate=empty, new=SIGNATURE, live=None, allow_signature_change=False) == (
        "certificate of onnx-fp32: nothing was checked",
    )


def test_an_incompatible_signature_is_refused_unless_allowed():
    assert refusals(new=WIDER) == ("signature: input x was [-1, 4], is [-1, 5]",)
    assert refusals(new=WIDER, allow=True) == ()
    assert refusals(new=WIDER, live=None) == ()


@pytest.mark.parametrize(
    ("p50_ms", "passes", "chosen"),
    [
        ({"a": 2.0, "b": 1.0}, {"a": True, "b": True}, "b"),
        ({"a": 2.0, "b": 1.0}, {"a": True, "b": False}, "a"),
        ({"a": 1.0, "b": 1.0}, {"a": True, "b": True}, "a"),
        ({"a": None, "b": 9.0}, {"a": True, "b": True}, "b"),
        ({"a": float("nan"), "b": 9.0}, {"a": True, "b": True}, "b"),
        ({"a": 9.0, "b": float("nan")}, {"a": True, "b": True}, "a"),
        ({"a": -1.0, "b": 9.0}, {"a": True, "b": True}, "b"),
        ({"a": 1.0}, {"a": False}, None),
        ({}, {}, None),
    ],
)
def test_the_fastest_that_passes_is_chosen(p50_ms, passes, chosen):
    certificates = {name: certificate(passed=passes[name], p50_ms=value, variant=name) for name, value in p50_ms.items()}
    assert fastest_passing(certificates) == chosen
    if chosen is not None:
        assert choose_variant(certificates, None) == chosen


def test_a_requested_variant_is_taken_also_if_it_fails_and_the_gate_says_why():
    assert choose_variant({"a": certificate(passed=False, variant="a")}, "a") == "a"


def test_an_unknown_variant_lists_those_that_exist():
    with pytest.raises(NotFound, match=r"no such variant \(c\)\. Exported are: a, b\."):
        choose_variant({"b": certificate(), "a": certificate()}, "c")


def test_no_passing_variant_is_refused_with_every_reason():
    with pytest.raises(Refused, match=r"no variant passes its certificate: a: parity/y/max_abs_error 0\.5 > 0\.1; b: "):
        choose_variant({"b": certificate(passed=False), "a": certificate(passed=False)}, None)
