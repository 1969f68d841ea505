"""TorchServe's entry point of an archive: exactly one class, nothing else (TorchServe insists), and no logic.

It does not derive from TorchServe's base handler: importing that changes torch's float32 precision.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_RUNTIME = f"{__package__}.modelway_runtime" if __package__ else "modelway_runtime"
_logger = logging.getLogger("modelway")


class ModelwayHandler:
    """Hands batches of raw requests to the runtime's core, and its answers back."""

    def __init__(self) -> None:
        self._core: Any = None
        self._listener: Any = None

    def initialize(self, context: Any) -> None:
        """Load the model of the archive that TorchServe unpacked. Raises RuntimeError, which TorchServe logs and retries."""
        worker = importlib.import_module(f"{_RUNTIME}.worker")
        status_of = importlib.import_module(f"{_RUNTIME}.status").WorkerStatus.of_this_process
        properties = context.system_properties
        engine_version = str(context.manifest["model"]["modelVersion"])
        status = status_of(str(context.manifest["model"]["modelName"]), engine_version)
        status.loading()
        try:
            self._core = worker.load(Path(properties["model_dir"]), engine_version, properties.get("gpu_id"))
        except Exception as error:
            reason = " ".join(str(error).split())
            _logger.error("refused to serve %s: %s", engine_version, reason)
            status.failed(reason or type(error).__name__)
            # The reason is in the log line above; TorchServe prints a chain of tracebacks twice.
            raise RuntimeError(f"refused to serve {engine_version}: {reason}") from None
        importlib.import_module(f"{_RUNTIME}.torchserve_reader").install()
        self._open_socket(Path(properties["model_dir"]), str(context.manifest["model"]["modelName"]), engine_version)
        status.ready()
        # TorchServe's worker logs several lines per request at INFO, each of which costs as much as a small model.
        logging.getLogger().setLevel(logging.WARNING)

    def _open_socket(self, root: Path, model: str, engine_version: str) -> None:
        """Answer on the worker's own socket too, if the node wants that; without it the engine's front still serves."""
        sockets = importlib.import_module(f"{_RUNTIME}.sockets")
        path = sockets.path_of_this_process(model, engine_version)
        if path is None:
            return
        try:
            listener = importlib.import_module(f"{_RUNTIME}.listener")
            batch_size = importlib.import_module(f"{_RUNTIME}.files").options(root).get("batch_size", 0)
            limits = listener.limits_from_environment(batch_size=batch_size)
            self._listener = listener.Listener(self._core, path, model, engine_version, limits)
            self._listener.start()
        except (ImportError, OSError, ValueError, TypeError) as error:
            _logger.error("no socket of its own for %s: %s", engine_version, " ".join(str(error).split()))

    def handle(self, data: Sequence[dict[str, Any]], context: Any) -> list[bytes]:
        """Answer a batch: one body per request, with its own status, type and headers in the context."""
        requests = []
        for index, parts in enumerate(data):
            headers = {name.lower(): value for name, value in context.get_all_request_header(index).items() if isinstance(value, str)}
            requests.append((headers, parts.get("body", b"")))
        bodies = []
        for index, answer in enumerate(self._core.handle(requests)):
            context.set_response_status(code=answer.status, idx=index)
            context.set_response_content_type(index, answer.content_type)
            for name, value in answer.headers.items():
                context.set_response_header(index, name, value)
            bodies.append(answer.body)
        return bodies
