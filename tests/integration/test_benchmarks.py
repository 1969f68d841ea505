"""The benchmarks themselves run and write what they promise. What they measure here means nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.catalogue import RIVALS
from benchmarks.setup_environments import is_built

# A minute and a half on two idle cores; five times that where others are at work on them.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ROOT = Path(__file__).parent.parent.parent
RIVALS_BUILT = [rival for rival in RIVALS.values() if rival.environment and is_built(rival.environment)]


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a quick run wrote; it fails if a request failed or was answered by the wrong version."""
    output = tmp_path_factory.mktemp("benchmarks") / "performance.md"
    argv = [sys.executable, "-m", "benchmarks", "--quick", "--output", str(output)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=580, check=False)
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


OURS = ("Modelway, workers' sockets", "Modelway, gateway", "Modelway, TorchServe's path")


def section(document: str, title: str) -> str:
    """From a heading to the next one of its level or above."""
    level = title.split(maxsplit=1)[0]
    return re.split(rf"\n#{{2,{len(level)}}} ", document.split(f"\n{title}\n", 1)[1])[0]


@pytest.mark.parametrize("form", ["### Binary", "### JSON"])
@pytest.mark.parametrize("server", [*OURS, "TorchServe as installed"])
def test_each_server_was_measured(document: str, server: str, form: str) -> None:
    compared, every = section(document, form).split("Requests/s at each number of connections:")
    row = table_row(compared, server)
    best, ratio, p50_ms, p99_ms, failed = number(row[1]), number(row[4]), number(row[6]), number(row[7]), number(row[10])
    assert best > 0
    assert 0 < p50_ms <= p99_ms
    assert failed == 0
    stock = number(table_row(compared, "TorchServe as installed")[1])
    assert ratio == pytest.approx(best / stock, rel=0.1, abs=0.01)  # of figures that were rounded for print
    assert best == pytest.approx(max(number(cell) for cell in table_row(every, server)[1:]), rel=0.01)


def test_open_loops_and_large_inputs_were_measured(document: str) -> None:
    for server in (*OURS, "TorchServe as installed"):
        assert number(table_row(section(document, "## Open loop"), server, "binary")[2]) > 0
        assert number(table_row(section(document, "## Large inputs"), server)[1]) > 0


def test_the_goals_that_were_measured_have_a_verdict(document: str) -> None:
    goals = section(document, "## Goals")
    assert table_row(goals, "gateway, binary: best rate, times the best of all others")[3].startswith(("met", "not met"))
    assert table_row(goals, "workers' sockets, binary: best rate, times Triton's")[3] == "not measured"  # it was not asked for


def test_the_plot_was_drawn(document: str) -> None:
    assert "![Throughput against p99](performance.svg)" in document


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
    assert re.findall(r"Failed: (\d+)\.", document) == ["0"]


def test_each_part_has_its_memory(document: str) -> None:
    parts = [number(table_row(document, part)[4]) for part in ("mlflow", "node-0", "gateway", "controller", "supervisor")]
    assert min(parts) > 1
    assert number(table_row(document, "all of Modelway")[4]) == pytest.approx(sum(parts), abs=len(parts))


@pytest.mark.skipif(not RIVALS_BUILT, reason="no environment of a rival is built (make bench-setup)")
def test_each_rival_that_is_built_is_measured(tmp_path: Path) -> None:
    output = tmp_path / "performance.md"
    names = ",".join(rival.name for rival in RIVALS_BUILT)
    argv = [sys.executable, "-m", "benchmarks", "--quick", "--only", "servers", "--servers", names, "--output", str(output)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stderr
    forms = {form: section(output.read_text(), form) for form in ("### Binary", "### JSON")}
    for rival in RIVALS_BUILT:
        for encoding in rival.paths:
            assert (
                number(table_row(forms["### Binary" if encoding.is_binary else "### JSON"].split("Requests/s at")[0], rival.title)[1]) > 0
            )
