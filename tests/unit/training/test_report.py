"""The report: one file that loads nothing, with every variant, its reasons and its figures; hostile names are text."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser

import numpy as np
import pytest

from registry.certificate import Certificate, Check
from registry.gates import fastest_passing
from registry.signature import Signature, TensorSpec
from support.planted import VERSION
from training.export.metrics import numbers, verdict_line
from training.export.report.page import write_report
from training.export.variants.onnx_fp32 import OnnxFp32
from training.export.variants.torchscript_fp32 import TorchScriptFp32

HOSTILE = """<script src="http://evil.example/x.js"></script><img src=x onerror=alert(1)>&"'$\\frac{$"""
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Elements, attributes and texts of a page; every element is closed in order."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.table_rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.table_rows.append([])
        if tag in ("td", "th"):
            self.table_rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and ("td" in self.open or "th" in self.open):
            self.table_rows[-1][-1] += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)

    def row_of(self, name: str) -> list[str]:
        return next(row for row in self.table_rows if row and row[0].startswith(name))


def assert_loads_nothing(page: Page, text: str) -> None:
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "img", "image", "base", "form"), tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "data", "action", "srcset"):
                assert (value or "").startswith("#"), (tag, name, value)
            assert "url(" not in (value or "") or "url(#" in (value or "")
    assert "@import" not in text
    policies = [attributes.get("content") for tag, attributes in page.elements if attributes.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def report_of(path, results, reference, **changes):
    certificates = {name: result.certificate for name, result in results.items()}
    arguments = {
        "version": VERSION,
        "certificates": certificates,
        "chosen": fastest_passing(certificates),
        "reference": reference,
        "outputs": {name: result.outputs for name, result in results.items()},
        **changes,
    }
    write_report(path, **arguments)
    text = path.read_text(encoding="utf-8")
    return Page(text), text


class Refuses(TorchScriptFp32):
    name = "torchscript-int8"

    def export(self, model, context, into):
        raise RuntimeError("no such operator <here>")


@pytest.fixture
def results(measured_of, tmp_path, short_latency):
    found = {}
    for exporter in (OnnxFp32(), TorchScriptFp32(), Refuses()):
        found[exporter.name] = measured_of(exporter)
        (tmp_path / "variant").rename(tmp_path / exporter.name)
    return found


def test_the_report_of_real_certificates(results, measured, tmp_path):
    page, text = report_of(tmp_path / "report.html", results, measured[0])
    assert_loads_nothing(page, text)
    assert "http://" not in text
    assert "https://" not in text
    assert page.count("svg") == 4  # against latency, against size, errors, calibration
    chosen = fastest_passing({name: result.certificate for name, result in results.items()})
    assert page.row_of(f"{chosen} (chosen)")[1] == "passed"
    facts = results["onnx-fp32"].certificate.facts
    row = page.row_of("onnx-fp32")
    assert f"{facts['latency']['batch_32']['rows_per_s']}" in row
    assert f"{facts['size_bytes'] / 1e3:.1f} kB" in row
    assert f"{facts['size_ratio']:.4g}" in row
    assert "no such operator <here>" in page.row_of("torchscript-int8")[1]
    shown = [row[0] for row in page.table_rows]
    assert all(check.name in shown for check in results["onnx-fp32"].certificate.checks)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = [value for _, a in page.elements for name, value in a.items() if name == "href"]
    assert references
    assert {value.removeprefix("#") for value in references} <= set(ids)


def test_the_same_values_give_the_same_bytes(results, measured, tmp_path):
    _, first = report_of(tmp_path / "one.html", results, measured[0])
    _, second = report_of(tmp_path / "two.html", results, measured[0])
    assert first == second


def test_without_labels_there_is_no_calibration_and_the_page_says_why(results, measured, tmp_path):
    page, text = report_of(tmp_path / "report.html", results, dataclasses.replace(measured[0], labelled=False))
    assert "There were no labels" in text
    assert page.count("svg") == 3


def test_nothing_passed_and_nothing_ran(measured, tmp_path):
    failing = Certificate(
        version=VERSION, source_sha256="0" * 64, variant="onnx-fp32", checks=(Check(name="export", passed=False, value=0, limit=1),)
    )
    page, text = report_of(tmp_path / "r.html", {}, measured[0], certificates={"onnx-fp32": failing}, chosen=None)
    assert "No variant passed" in text
    assert page.count("svg") == 1  # the calibration of the eager model itself
    assert page.row_of("onnx-fp32")[1].startswith("failed")


def test_hostile_names_are_text(measured, tmp_path):
    reference = measured[0]
    logits = reference.outputs["logits"]
    signature = Signature((TensorSpec(HOSTILE, "FP32", (-1, 1)),), (TensorSpec(HOSTILE, "FP32", (-1, 10)),))
    hostile = dataclasses.replace(reference, signature=signature, outputs={HOSTILE: logits}, origin=HOSTILE)
    facts = {
        "quality": "accuracy",
        "accuracy": {"eager": 0.9, "variant": 0.9, "change": 0.0, "interval": [-0.1, 0.1]},
        "latency": {"batch_1": {"p50_ms": 1.0, "p99_ms": HOSTILE, "rows_per_s": 1.0}},
        "size_bytes": 10,
        "provider": HOSTILE,
        "parity": {
            "held_out": {
                HOSTILE: dict.fromkeys(("max_abs", "mean_abs", "max_rel", "mean_rel"), 0.1)
                | {"min_cosine": None, "mean_cosine": None, "argmax_agreement": None}
            }
        },
        "operators": {HOSTILE: 1},
        "libraries": {HOSTILE: HOSTILE},
        "layer_errors": {HOSTILE: 0.01, "other": None},
    }
    check = Check(name=HOSTILE, passed=False, value=float("nan"), limit=1, detail=HOSTILE)
    certificate = Certificate(version=VERSION, source_sha256=HOSTILE, variant=HOSTILE, checks=(check,), facts=facts)
    page, text = report_of(
        tmp_path / "r.html", {}, hostile, certificates={HOSTILE: certificate}, chosen=HOSTILE, outputs={HOSTILE: {HOSTILE: logits + 0.1}}
    )
    assert_loads_nothing(page, text)
    assert page.count("svg") == 5  # and the errors of its layers
    assert sum(HOSTILE in text for text in page.texts) > 10
    assert any(HOSTILE in text for tag, text in _svg_texts(text))


def _svg_texts(html: str):
    import re
    from xml.etree import ElementTree

    for svg in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL):
        for element in ElementTree.fromstring(svg).iter():
            yield element.tag, element.text or ""


def test_an_error_that_is_not_finite_is_drawn_as_larger_than_all(measured, tmp_path):
    reference = measured[0]
    broken = reference.outputs["logits"].copy()
    broken[:, 0] = np.nan
    certificate = Certificate(version=VERSION, source_sha256="0", variant="onnx-fp32", checks=())
    page, _ = report_of(
        tmp_path / "r.html",
        {},
        reference,
        certificates={"onnx-fp32": certificate},
        chosen=None,
        outputs={"onnx-fp32": {"logits": broken}},
    )
    assert page.count("svg") == 2
    assert "nothing was checked" in page.row_of("onnx-fp32")[1]


def test_every_number_becomes_a_metric_and_one_line(results):
    certificates = {name: result.certificate for name, result in results.items()}
    metrics = numbers(certificates)
    assert metrics["export/onnx-fp32/passed"] == 1.0
    assert metrics["export/torchscript-int8/passed"] == 0.0
    facts = certificates["onnx-fp32"].facts
    assert metrics["export/onnx-fp32/latency/batch_8/rows_per_s"] == facts["latency"]["batch_8"]["rows_per_s"]
    assert metrics["export/onnx-fp32/accuracy/change_low"] == facts["accuracy"]["interval"][0]
    assert metrics["export/onnx-fp32/parity/logits/min_cosine"] == facts["parity"]["held_out"]["logits"]["min_cosine"]
    assert metrics["export/onnx-fp32/size_ratio"] == facts["size_ratio"]
    assert {f"export/onnx-fp32/{check.name}" for check in certificates["onnx-fp32"].checks} <= set(metrics)
    assert all(isinstance(value, (int, float)) for value in metrics.values())
    assert verdict_line(certificates["onnx-fp32"]).startswith("onnx-fp32: passed ")
    assert "no such operator" in verdict_line(certificates["torchscript-int8"])
