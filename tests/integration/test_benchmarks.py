"""The benchmarks themselves run and write what they promise. What they measure here means nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a quick run wrote; it fails if a request failed or was answered by the wrong version."""
    output = tmp_path_factory.mktemp("benchmarks") / "performance.md"
    argv = [sys.executable, "-m", "benchmarks", "--quick", "--output", str(output)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == output.read_text().strip()
    return output.read_text()


def table_row(document: str, *cells: str) -> list[str]:
    """The cells of the one row that begins with these."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in document.splitlines() if line.startswith("|")]
    found = [row for row in rows if row[: len(cells)] == list(cells)]
    assert len(found) == 1, f"{cells}: {found}"
    return found[0]


def number(cell: str) -> float:
    return float(cell.replace(",", "").strip("*"))


@pytest.mark.parametrize("connections", ["1", "8", "32"])
@pytest.mark.parametrize("server", ["Modelway, through the gateway", "Modelway's node, without the gateway", "stock TorchServe"])
def test_each_server_was_measured(document: str, server: str, connections: str) -> None:
    row = table_row(document, connections, server)
    requests_per_s, p50_ms, p99_ms, ratio = number(row[2]), number(row[4]), number(row[5]), number(row[6])
    assert requests_per_s > 0
    assert 0 < p50_ms <= p99_ms
    stock = number(table_row(document, connections, "stock TorchServe")[2])
    assert ratio == pytest.approx(requests_per_s / stock, rel=0.1, abs=0.01)  # of figures that were rounded for print


def test_the_engine_alone_was_measured(document: str) -> None:
    assert number(table_row(document, "ONNX Runtime, batch 1")[1]) > 0
    assert number(table_row(document, "ONNX Runtime, batch 32")[1]) > 0


@pytest.mark.parametrize("via", ["control API", "command line"])
@pytest.mark.parametrize("kind", ["promotion, immediate", "rollback, warm", "rollback, cold"])
def test_each_kind_of_release_was_measured(document: str, kind: str, via: str) -> None:
    row = table_row(document, kind, via)
    times, median_s, worst_s, answers, wrong = (number(cell) for cell in row[2:])
    assert times >= 1
    assert 0 < median_s <= worst_s
    assert answers > 0
    assert wrong == 0


def test_nothing_failed(document: str) -> None:
    assert re.findall(r"Failed: (\d+)\.", document) == ["0", "0"]


def test_each_part_has_its_memory(document: str) -> None:
    parts = [number(table_row(document, part)[4]) for part in ("mlflow", "node-0", "gateway", "controller", "supervisor")]
    assert min(parts) > 1
    assert number(table_row(document, "all of Modelway")[4]) == pytest.approx(sum(parts), abs=len(parts))
