"""105 million parameters from export through certificate and archive to an answering worker, and the memory that it takes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from serving.archive import open_archive

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
PYTHONPATH = os.pathsep.join((str(ROOT), str(ROOT / "tests")))


def test_a_model_of_105_million_parameters(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "support.large_model", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    result = json.loads(made.stdout.splitlines()[-1])
    weights, peak = result["weights_bytes"], result["peak_bytes"]
    assert result["num_parameters"] > 100_000_000
    assert result["passed"], result["failures"]
    assert result["files"] == ["certificate.json", "model.onnx", "model.onnx.data"]
    # No second copy of the weights while the graph is made: with the weights inside of it there are three more.
    assert peak["export"] - peak["model"] < 0.5 * weights
    # The engine that is certified holds its own, once.
    assert peak["certificate"] - peak["model"] < 2 * weights
    assert peak["archive"] - peak["certificate"] < 0.5 * weights

    archive = Path(result["archive"])
    assert archive.is_dir()
    golden = open_archive(archive).golden.data
    sockets = Path(tempfile.mkdtemp(prefix="mw-"))
    socket = sockets / "w.sock"
    process = subprocess.Popen(
        [sys.executable, "-m", "modelway_runtime.serve", "--archive", ".", "--socket", str(socket), "--until-eof"],
        cwd=archive,  # the code in the archive answers, from where the archive lies
        env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"ready\n", process.communicate(timeout=20)[1].decode()
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://worker", timeout=60) as client:
            answer = client.post(f"/predictions/wide/{result['engine_version']}", json=golden.inputs["input"].tolist())
        assert answer.status_code == 200, answer.text
        np.testing.assert_allclose(answer.json(), golden.outputs["logits"], rtol=1e-3, atol=1e-5)
        assert psutil.Process(process.pid).memory_info().rss < 2 * weights
        process.stdin.close()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()
        shutil.rmtree(sockets)
        shutil.rmtree(tmp_path)  # a gigabyte
