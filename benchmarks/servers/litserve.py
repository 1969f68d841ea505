"""LitServe (github.com/Lightning-AI/LitServe)."""

from __future__ import annotations

from benchmarks.encodings import Encoding
from benchmarks.servers.rival import APPS, MAX_BATCH, NUM_WORKERS, Launch, Place, Rival, Setting


def _launch(place: Place, setting: Setting) -> Launch:
    env = {
        "BENCH_MODEL": str(place.workload.model),
        "BENCH_WIDTH": str(place.workload.width),
        "BENCH_PORT": str(place.port),
        "BENCH_WORKERS": str(NUM_WORKERS),
        "BENCH_MAX_BATCH": str(setting.options["max_batch"]),
        "BENCH_DELAY_MS": str(setting.options["delay_ms"]),
        "BENCH_API_SERVERS": str(setting.options["api_servers"]),
        "BENCH_FAST_QUEUE": str(setting.options["fast_queue"]),
    }
    return Launch(argv=(str(place.python), str(APPS / "litserve_app.py")), env=env)


RIVAL = Rival(
    name="litserve",
    title="LitServe",
    package="litserve",
    environment="litserve",
    how="a `LitAPI` with ONNX Runtime, 2 workers; it reads only JSON, so its binary form is base64 in JSON",
    paths={Encoding.BASE64_JSON: "/predict", Encoding.NAMED_JSON: "/predict"},
    settings=(
        Setting(name="no batching, 2 API servers", options={"max_batch": 1, "delay_ms": 0, "api_servers": 2, "fast_queue": 0}),
        Setting(
            name="batches of 32, 1 ms, 1 API server", options={"max_batch": MAX_BATCH, "delay_ms": 1, "api_servers": 1, "fast_queue": 0}
        ),
        Setting(name="batches of 32, 1 ms, fast queue", options={"max_batch": MAX_BATCH, "delay_ms": 1, "api_servers": 1, "fast_queue": 1}),
    ),
    launch=_launch,
)
