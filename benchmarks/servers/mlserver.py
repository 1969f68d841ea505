"""MLServer (github.com/SeldonIO/MLServer)."""

from __future__ import annotations

import json

from benchmarks.encodings import Encoding
from benchmarks.servers.rival import APPS, MAX_BATCH, Launch, Place, Rival, Setting


def _launch(place: Place, setting: Setting) -> Launch:
    workload = place.workload
    server = {
        "host": "127.0.0.1",
        "http_port": place.ports[0],
        "grpc_port": place.ports[1],
        "metrics_port": place.ports[2],
        "metrics_dir": str(place.directory),
        "parallel_workers": setting.options["parallel_workers"],
        "debug": False,
        "gzip_enabled": False,
        "logging_settings": None,
    }
    model = {
        "name": workload.name,
        "implementation": "mlserver_app.OnnxRuntime",
        "max_batch_size": setting.options["max_batch"],
        "max_batch_time": 0.001 if setting.options["max_batch"] else 0,
        "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, workload.width]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, workload.num_outputs]}],
    }
    (place.directory / "settings.json").write_text(json.dumps({name: value for name, value in server.items() if value is not None}))
    (place.directory / "model-settings.json").write_text(json.dumps(model))
    env = {"BENCH_MODEL": str(workload.model), "BENCH_WIDTH": str(workload.width), "PYTHONPATH": str(APPS)}
    return Launch(argv=(str(place.bin / "mlserver"), "start", str(place.directory)), env=env)


RIVAL = Rival(
    name="mlserver",
    title="MLServer",
    package="mlserver",
    environment="mlserver",
    how="a custom runtime with ONNX Runtime, 2 parallel workers unless said, no debug log, no gzip; it has no binary form",
    paths={Encoding.V2_JSON: "/v2/models/{model}/infer"},
    settings=(
        Setting(name="2 parallel workers, adaptive batching up to 32, 1 ms", options={"parallel_workers": 2, "max_batch": MAX_BATCH}),
        Setting(name="2 parallel workers, no batching", options={"parallel_workers": 2, "max_batch": 0}),
        Setting(name="all in one process, adaptive batching up to 32, 1 ms", options={"parallel_workers": 0, "max_batch": MAX_BATCH}),
    ),
    launch=_launch,
    takes_large=False,
)
