"""BentoML (github.com/bentoml/BentoML)."""

from __future__ import annotations

from benchmarks.encodings import Encoding
from benchmarks.servers.rival import APPS, MAX_BATCH, NUM_WORKERS, Launch, Place, Rival, Setting


def _launch(place: Place, setting: Setting) -> Launch:
    env = {
        "BENCH_MODEL": str(place.workload.model),
        "BENCH_WIDTH": str(place.workload.width),
        "BENCH_WORKERS": str(NUM_WORKERS),
        "BENCH_BATCHED": str(setting.options["batched"]),
        "BENCH_MAX_BATCH": str(MAX_BATCH),
        "BENCH_LATENCY_MS": str(setting.options["latency_ms"]),
        "BENTOML_HOME": str(place.directory / "home"),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    argv = [str(place.bin / "bentoml"), "serve", "bentoml_app:Mlp", "--host", "127.0.0.1", "--port", str(place.port)]
    return Launch(argv=(*argv, "--working-dir", str(APPS)), env=env)


RIVAL = Rival(
    name="bentoml",
    title="BentoML",
    package="bentoml",
    environment="bentoml",
    how="a service with ONNX Runtime, 2 workers, no access log; its binary form is base64 in JSON",
    paths={Encoding.BASE64_JSON: "/predict_base64", Encoding.NAMED_JSON: "/predict"},
    settings=(
        Setting(name="no batching", options={"batched": 0, "latency_ms": 0}),
        Setting(name="adaptive batching up to 32, 1 s", options={"batched": 1, "latency_ms": 1000}),
    ),
    launch=_launch,
)
