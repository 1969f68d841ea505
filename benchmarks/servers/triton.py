"""Triton: the `tritonserver` of the nvidia-pytriton wheel, run alone with its Python backend and dynamic batching.

The wheel is made for PyTriton, which copies the backends to a workspace and adds the stub of the running Python's version
(pytriton/triton.py, `_prepare_triton_inference_server`); this does the same with links. The stub finds numpy and ONNX
Runtime by the `python` that comes first in PATH.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

from benchmarks.encodings import Encoding
from benchmarks.servers.rival import APPS, MAX_BATCH, NUM_WORKERS, Launch, Place, Rival, Setting


def _launch(place: Place, setting: Setting) -> Launch:
    code = "import sysconfig, sys; print(sysconfig.get_path('platlib')); print('%d.%d' % sys.version_info[:2])"
    told = subprocess.run([str(place.python), "-c", code], check=True, capture_output=True, text=True).stdout.split()
    packages, python_version = Path(told[0]), told[1]
    server = packages / "pytriton" / "tritonserver"
    backend = place.directory / "backends" / "python"
    backend.mkdir(parents=True)
    for file in (server / "backends" / "python").iterdir():
        (backend / file.name).symlink_to(file)
    (backend / "triton_python_backend_stub").symlink_to(server / "python_backend_stubs" / python_version / "triton_python_backend_stub")
    _write_model(place, setting)
    arguments = {
        "model-repository": place.directory / "models",
        "backend-directory": place.directory / "backends",
        "http-address": "127.0.0.1",
        "http-port": place.port,
        "http-thread-count": setting.options["http_threads"],
        "allow-grpc": "false",
        "allow-metrics": "false",
        # The shared memory of the wheel's default, and a name of its own, so that two servers do not meet.
        "backend-config": f"python,shm-region-prefix-name=bench-{place.port}",
    }
    argv = [str(server / "bin" / "tritonserver"), *(f"--{name}={value}" for name, value in arguments.items())]
    return Launch(argv=tuple(argv), env={"LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs")})


def _write_model(place: Place, setting: Setting) -> None:
    workload = place.workload
    directory = place.directory / "models" / workload.name
    (directory / "1").mkdir(parents=True)
    (directory / "1" / "model.py").symlink_to(APPS / "triton_model.py")
    (directory / "config.pbtxt").write_text(
        f"name: {json.dumps(workload.name)}\n"
        'backend: "python"\n'
        f"max_batch_size: {MAX_BATCH}\n"
        f'input [{{name: "input" data_type: TYPE_FP32 dims: [{workload.width}]}}]\n'
        f'output [{{name: "logits" data_type: TYPE_FP32 dims: [{workload.num_outputs}]}}]\n'
        f"instance_group [{{kind: KIND_CPU count: {NUM_WORKERS}}}]\n"
        f"dynamic_batching {{ max_queue_delay_microseconds: {setting.options['delay_us']} }}\n"
        f'parameters {{key: "model" value: {{string_value: {json.dumps(str(workload.model))}}}}}\n'
    )


_HOW = "the `tritonserver` of the nvidia-pytriton wheel, Python backend with ONNX Runtime, 2 instances, dynamic batching up to 32"
_PATHS = {Encoding.V2_BINARY: "/v2/models/{model}/infer", Encoding.V2_JSON: "/v2/models/{model}/infer"}


def _settings(delay_us: int) -> tuple[Setting, ...]:
    return tuple(
        Setting(name=f"{threads} HTTP threads", options={"delay_us": delay_us, "http_threads": threads})
        for threads in (8, 2)  # the default, and one for each core
    )


# With a queue delay its batches are fuller and its single requests later; each figure is compared with the better of the two.
RIVAL = Rival(
    name="triton",
    title="Triton",
    package="nvidia-pytriton",
    environment="triton",
    how=_HOW,
    paths=_PATHS,
    settings=_settings(0),
    launch=_launch,
)
DELAYED = replace(
    RIVAL,
    name="triton-delay",
    title="Triton, queue delay 0.5 ms",
    settings=_settings(500),
    takes_large=False,  # the same as without the delay
)
