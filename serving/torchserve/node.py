"""The adapter to a running TorchServe: `ServingEngine` over its Unix sockets."""

from __future__ import annotations

import http.client
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from registry.errors import Corrupt, ModelwayError, NotFound, TimedOut, Unavailable
from serving import unix_http
from serving.archive_forms import archive_sha256, copy_archive, has_digest, put_in_place, remove_archive
from serving.ports import NodeState
from serving.torchserve.config import TorchServeConfig
from serving.torchserve.states import WorkerReport, loaded_archive
from serving.torchserve.workers import WorkerSockets

_OBSERVE_TIMEOUT_S = 2.0
_MANAGE_TIMEOUT_S = 60.0  # unregistering waits for workers to be gone
_PAGE = 100


class _Response(NamedTuple):
    status: int
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")


class TorchServeNode:
    """One node. Needs the process of `serving.torchserve.process` to run; says so where it does not."""

    def __init__(self, config: TorchServeConfig) -> None:
        self._config = config
        self._workers = WorkerSockets(config.worker_socket_dir)

    @property
    def name(self) -> str:
        """See `ServingEngine`."""
        return self._config.name

    @property
    def inference_socket(self) -> str:
        """See `ServingEngine`."""
        return str(self._config.inference_socket)

    def inference_key(self) -> str:
        """The key that requests to the inference socket need: `Authorization: Bearer <key>`. New at each start of the process.

        Raises Unavailable if the process has not written it yet.
        """
        return self._key("inference")

    def ready(self) -> bool:
        """Whether the node's APIs answer; says nothing of any model. Never raises."""
        try:
            self._manage("GET", "/models", {"limit": "1"}, timeout_s=_OBSERVE_TIMEOUT_S)
            response = self._send(
                self._config.inference_socket, "GET", "/ping", headers=self._authorization("inference"), timeout_s=_OBSERVE_TIMEOUT_S
            )
        except ModelwayError:
            return False
        return response.status == 200

    def observe(self) -> NodeState:
        """See `ServingEngine`."""
        try:
            descriptions = [d for model in self._model_names() for d in self._describe(model, timeout_s=_OBSERVE_TIMEOUT_S)]
            stored = frozenset(path.name for path in self._config.model_store.glob("*.mar"))
            archives = [loaded_archive(description, self._reports(description)) for description in descriptions]
        except (ModelwayError, OSError, KeyError, TypeError, ValueError):
            return NodeState(reachable=False, worker_sockets=self.worker_sockets())
        by_name = {(a.model, a.engine_version): a for a in archives}
        return NodeState(reachable=True, archives=by_name, stored=stored, worker_sockets=self.worker_sockets())

    def worker_sockets(self) -> tuple[str, ...]:
        """See `ServingEngine`."""
        return self._workers.paths()

    def store(self, archive: Path, sha256: str) -> None:
        """See `ServingEngine`."""
        target = self._config.model_store / archive.name
        if has_digest(target, sha256):
            return
        partial = target.with_name(f".{archive.name}.{os.getpid()}.partial")
        try:
            remove_archive(partial)
            copy_archive(archive, partial)
            found = archive_sha256(partial)
            if found != sha256:
                raise Corrupt(f"wrong digest of {archive} ({found}, expected {sha256})", "Build the archive again.")
            put_in_place(partial, target)
        except FileNotFoundError as error:
            raise NotFound(f"cannot store an archive on node {self.name} ({error})") from error
        except OSError as error:
            raise Unavailable(f"cannot store {archive.name} on node {self.name} ({error})") from error
        finally:
            remove_archive(partial)

    def register(self, archive_name: str) -> None:
        """See `ServingEngine`. Raises NotFound if the archive is not in the store."""
        if "/" in archive_name or not (self._config.model_store / archive_name).exists():
            raise NotFound(f"no such archive in the store of node {self.name} ({archive_name})", "Store it first.")
        # TorchServe refuses a second registration, but only after unpacking the archive, which it then leaves behind.
        if any(d["modelUrl"] == archive_name for model in self._model_names() for d in self._describe(model)):
            return
        response = self._manage(
            "POST",
            "/models",
            {
                "url": archive_name,
                "initial_workers": "0",
                "batch_size": str(self._config.batch_size),
                "max_batch_delay": str(self._config.max_batch_delay_ms),
                "response_timeout": str(self._config.response_timeout_s),
                "startup_timeout": str(self._config.startup_timeout_s),
            },
        )
        if response.status != 409:  # somebody else registered it in between
            self._expect_success(response, f"register {archive_name}")

    def scale(self, model: str, engine_version: str, num_workers: int) -> None:
        """See `ServingEngine`."""
        number = str(num_workers)
        response = self._manage("PUT", _path(model, engine_version), {"min_worker": number, "max_worker": number})
        if response.status == 404:
            raise NotFound(f"not registered on node {self.name} ({model} {engine_version})", "Register it first.")
        self._expect_success(response, f"scale {model} {engine_version}")

    def unregister(self, model: str, engine_version: str) -> None:
        """See `ServingEngine`."""
        response = self._manage("DELETE", _path(model, engine_version))
        if response.status == 403:  # the default version, which nobody asks for; TorchServe keeps one while there are others
            other = next((d["modelVersion"] for d in self._describe(model) if d["modelVersion"] != engine_version), None)
            if other is not None:
                self._expect_success(self._manage("PUT", f"{_path(model, other)}/set-default"), f"set the default version of {model}")
                response = self._manage("DELETE", _path(model, engine_version))
        if response.status != 404:
            self._expect_success(response, f"unregister {model} {engine_version}")
        remove_archive(self._config.model_store / f"{model}-{engine_version}.mar")
        shutil.rmtree(self._config.status_dir / model / engine_version, ignore_errors=True)
        self._workers.remove(model, engine_version)

    def infer(
        self, model: str, engine_version: str, body: bytes, headers: Mapping[str, str], timeout_s: float, *, worker: str | None = None
    ) -> tuple[int, bytes]:
        """See `ServingEngine`."""
        path = f"/predictions/{quote(model, safe='')}/{quote(engine_version, safe='')}"
        content_type = {} if any(name.lower() == "content-type" for name in headers) else {"content-type": "application/json"}
        sent = {**content_type, **headers}
        if worker is not None:
            return self._workers.infer(worker, path, body, sent, timeout_s)
        sent |= self._authorization("inference")
        response = self._send(self._config.inference_socket, "POST", path, headers=sent, timeout_s=timeout_s, content=body)
        return response.status, response.body

    def metrics_text(self) -> str:
        """The front's and the workers' metrics in Prometheus's text format. Raises Unavailable."""
        response = self._send(self._config.metrics_socket, "GET", "/metrics", headers={}, timeout_s=_OBSERVE_TIMEOUT_S)
        self._expect_success(response, "read metrics")
        return response.text + self._workers.metrics_text()

    def _model_names(self) -> Iterator[str]:
        token: str | None = "0"
        while token is not None:
            parameters = {"limit": str(_PAGE), "next_page_token": token}
            response = self._manage("GET", "/models", parameters, timeout_s=_OBSERVE_TIMEOUT_S)
            self._expect_success(response, "list models")
            page = json.loads(response.body)
            yield from (str(model["modelName"]) for model in page["models"])
            token = page.get("nextPageToken")

    def _describe(self, model: str, *, timeout_s: float = _MANAGE_TIMEOUT_S) -> list[dict[str, Any]]:
        response = self._manage("GET", _path(model, "all"), timeout_s=timeout_s)
        if response.status == 404:  # unregistered since it was listed
            return []
        self._expect_success(response, f"describe {model}")
        return list(json.loads(response.body))

    def _reports(self, description: Mapping[str, Any]) -> dict[str, WorkerReport]:
        reports = {}
        directory = self._config.status_dir / str(description["modelName"]) / str(description["modelVersion"])
        for file in directory.glob("*.json"):
            try:
                reports[file.stem] = WorkerReport.from_json(json.loads(file.read_text()))
            except (OSError, ValueError, KeyError, TypeError):
                continue  # replaced or removed while we looked; the next look sees it
        return reports

    def _manage(
        self, method: str, path: str, parameters: Mapping[str, str] | None = None, *, timeout_s: float = _MANAGE_TIMEOUT_S
    ) -> _Response:
        headers = self._authorization("management")
        return self._send(self._config.management_socket, method, path, headers=headers, timeout_s=timeout_s, parameters=parameters)

    def _send(
        self,
        socket_path: Path,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        timeout_s: float,
        parameters: Mapping[str, str] | None = None,
        content: bytes = b"",
    ) -> _Response:
        target = f"{path}?{urlencode(parameters)}" if parameters else path
        try:
            return _Response(*unix_http.call(socket_path, method, target, timeout_s=timeout_s, body=content, headers=headers))
        except TimeoutError as error:
            raise TimedOut(f"node {self.name} did not answer within {timeout_s:g} s ({method} {path})") from error
        except (OSError, http.client.HTTPException) as error:
            raise self._unavailable(error) from error

    def _authorization(self, kind: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self._key(kind)}"}

    def _key(self, kind: str) -> str:
        # Read each time: a restarted process has new keys.
        try:
            return str(json.loads(self._config.key_file.read_text())[kind]["key"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Unavailable(f"node {self.name} has no keys yet ({self._config.key_file})", "Wait until it has started.") from error

    def _expect_success(self, response: _Response, action: str) -> None:
        if not 200 <= response.status < 300:
            raise Unavailable(f"node {self.name} did not {action} ({response.status}: {response.text[:300].strip()})")

    def _unavailable(self, error: Exception) -> Unavailable:
        return Unavailable(f"node {self.name} does not answer ({type(error).__name__}: {error})", "See its log, or modelway status.")


def _path(model: str, engine_version: str) -> str:
    return f"/models/{quote(model, safe='')}/{quote(engine_version, safe='')}"
