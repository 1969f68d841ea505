"""FastAPI and ONNX Runtime by hand, in this project's own environment."""

from __future__ import annotations

from benchmarks.encodings import Encoding
from benchmarks.servers.rival import APPS, NUM_WORKERS, Launch, Place, Rival, Setting


def _launch(place: Place, setting: Setting) -> Launch:
    argv = [str(place.python), "-m", "uvicorn", "fastapi_app:app", "--host", "127.0.0.1", "--port", str(place.port)]
    argv += ["--workers", str(NUM_WORKERS), "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
    env = {"BENCH_MODEL": str(place.workload.model), "BENCH_WIDTH": str(place.workload.width), "PYTHONPATH": str(APPS)}
    return Launch(argv=tuple(argv), env=env)


RIVAL = Rival(
    name="fastapi",
    title="FastAPI by hand",
    package="fastapi",
    environment="",
    how="uvicorn with uvloop and httptools, 2 processes, orjson; no batching, no limits, no metrics, no versions",
    paths={Encoding.OCTETS: "/predict", Encoding.NAMED_JSON: "/predict"},
    settings=(Setting(name="2 processes"),),
    launch=_launch,
)
