"""The model registry on MLflow. The only file of this package that talks to MLflow.

A version's bundle lies among the artifacts of the run that made the version, in a directory named by its digest:

    <run's artifacts>/bundles/<manifest's sha256[:16]>/
    tag modelway.bundle = "bundles/<sha256[:16]>@sha256:<sha256>"     set last, in one write: place and digest change together

Small documents that come later, such as a tuning, lie beside it in the same way:

    <run's artifacts>/documents/<name>/<sha256[:16]>.json
    tag modelway.<name> = "documents/<name>/<sha256[:16]>.json@sha256:<sha256>"     empty when the document was taken away

MLflow reads its HTTP settings from the environment at every call, and offers no argument. Its own (7 tries with growing
pauses, 120 s each) would keep a rollback waiting for minutes, so every call here runs under ours: see `_HttpSettings`.
MLflow's telemetry, which calls home on import, is turned off unless the user's environment says otherwise.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from registry.bundle import Bundle
from registry.errors import Corrupt, NotFound, Unavailable, UsageError
from registry.names import ModelVersion, check_channel, check_model_name
from registry.ports import VersionInfo
from registry.registry_refusals import never_exported, no_run, not_new, unknown_model, unknown_version

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion

BUNDLE_TAG = "modelway.bundle"
RUN_TAG = "modelway.run_id"  # the run that keeps the files of a version that no run made
_DIGEST_MARK = "@sha256:"
_DOES_NOT_EXIST = "RESOURCE_DOES_NOT_EXIST"
_INVALID = "INVALID_PARAMETER_VALUE"
_PAGE = 1000


class MlflowRegistry:
    """Implements `registry.ports.ModelRegistry`. Safe for threads. MLflow is imported by the first call (2 to 4 s).

    Args:
        tracking_uri: `http(s)://...` of a server, or `sqlite:///...` or `postgresql://...` of its store.
        timeout_s: Whole seconds until a server that does not answer a question is Unavailable.
        transfer_timeout_s: The same while files are sent or fetched; a server that stores a large file answers late.
    """

    def __init__(self, tracking_uri: str, *, timeout_s: float = 3.0, transfer_timeout_s: float = 60.0) -> None:
        self._uri = tracking_uri
        self._ask = _HttpSettings(timeout_s)
        self._transfer = _HttpSettings(transfer_timeout_s)
        self._making = threading.Lock()
        self._made: MlflowClient | None = None

    def registered_models(self) -> Sequence[str]:
        """See `registry.ports.ModelRegistry`."""
        names: list[str] = []
        token = None
        with self._translated(), self._ask:
            while True:
                page = self._client.search_registered_models(max_results=_PAGE, page_token=token)
                names += [str(model.name) for model in page]
                token = page.token
                if not token:
                    return sorted(names)

    def versions(self, model: str) -> Sequence[VersionInfo]:
        """See `registry.ports.ModelRegistry`."""
        found: list[MlflowVersion] = []
        token = None
        with self._translated(), self._ask:
            query = f"name='{check_model_name(model)}'"
            while True:
                page = self._client.search_model_versions(query, max_results=_PAGE, page_token=token)
                found += page
                token = page.token
                if not token:
                    break
        if not found and not self._is_registered(model):
            raise unknown_model(model, self.registered_models())
        return tuple(sorted((_info(version) for version in found), key=lambda info: info.model_version))

    def version(self, model_version: ModelVersion) -> VersionInfo:
        """See `registry.ports.ModelRegistry`."""
        with self._translated(suppress_missing=True), self._ask:
            return _info(self._client.get_model_version(model_version.model, str(model_version.version)))
        raise self._unknown(model_version)

    def aliases(self, model: str) -> Mapping[str, int]:
        """See `registry.ports.ModelRegistry`."""
        with self._translated(suppress_missing=True), self._ask:
            registered = self._client.get_registered_model(check_model_name(model))
            return {str(alias): int(version) for alias, version in registered.aliases.items()}
        return {}

    def set_alias(self, model_version: ModelVersion, alias: str) -> None:
        """See `registry.ports.ModelRegistry`."""
        with self._translated(suppress_missing=True), self._ask:
            self._client.set_registered_model_alias(model_version.model, check_channel(alias), str(model_version.version))
            return
        raise self._unknown(model_version)

    def set_tag(self, model_version: ModelVersion, key: str, value: str) -> None:
        """See `registry.ports.ModelRegistry`."""
        with self._translated(suppress_missing=True), self._ask:
            self._client.set_model_version_tag(model_version.model, str(model_version.version), key, value)
            return
        raise self._unknown(model_version)

    def attach_bundle(self, model_version: ModelVersion, bundle: Path) -> VersionInfo:
        """See `registry.ports.ModelRegistry`. Raises UsageError for a version that no run made."""
        info = self.version(model_version)
        sha256 = Bundle.open(bundle).sha256
        if info.run_id is None:
            raise no_run(model_version)
        location = f"bundles/{sha256[:16]}"
        if (info.bundle, info.bundle_sha256) == (location, sha256) and self._is_intact(info):
            return info
        with self._translated(), self._transfer:
            self._client.log_artifacts(info.run_id, str(bundle), location)
        with tempfile.TemporaryDirectory(prefix="modelway-bundle-") as scratch:
            self._download(model_version, info.run_id, location, sha256, Path(scratch))
        self.set_tag(model_version, BUNDLE_TAG, f"{location}{_DIGEST_MARK}{sha256}")
        return self.version(model_version)

    def fetch_bundle(self, model_version: ModelVersion, into: Path) -> Path:
        """See `registry.ports.ModelRegistry`. `into` appears whole and verified, or not at all."""
        if into.exists():
            raise not_new(into)
        info = self.version(model_version)
        if info.bundle is None or info.bundle_sha256 is None:
            raise never_exported(model_version)
        if info.run_id is None:
            raise no_run(model_version)
        into.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{into.name}-", dir=into.parent) as scratch:
            self._download(model_version, info.run_id, info.bundle, info.bundle_sha256, Path(scratch)).rename(into)
        return into

    def attach_document(self, model_version: ModelVersion, name: str, content: bytes | None) -> None:
        """See `registry.ports.ModelRegistry`. Raises UsageError for a version that no run made."""
        tag, info = _document_tag(name), self.version(model_version)
        if info.run_id is None:
            raise no_run(model_version)
        if content is None:
            self.set_tag(model_version, tag, "")
            return
        sha256 = hashlib.sha256(content).hexdigest()
        file = f"{sha256[:16]}.json"
        with tempfile.TemporaryDirectory(prefix="modelway-document-") as scratch, self._translated(), self._transfer:
            (Path(scratch) / file).write_bytes(content)
            self._client.log_artifact(info.run_id, str(Path(scratch) / file), f"documents/{name}")
        location = f"documents/{name}/{file}"
        self._read_document(model_version, info.run_id, location, sha256)
        self.set_tag(model_version, tag, f"{location}{_DIGEST_MARK}{sha256}")

    def document(self, model_version: ModelVersion, name: str) -> bytes | None:
        """See `registry.ports.ModelRegistry`."""
        info = self.version(model_version)
        location, mark, sha256 = info.tags.get(_document_tag(name), "").partition(_DIGEST_MARK)
        if not mark or info.run_id is None:
            return None
        return self._read_document(model_version, info.run_id, location, sha256)

    # --- with MLflow

    def _read_document(self, model_version: ModelVersion, run_id: str, location: str, sha256: str) -> bytes:
        """Raises Corrupt if it is gone or is not what was stored."""
        content = None
        folder = location.rpartition("/")[0]
        with tempfile.TemporaryDirectory(prefix="modelway-document-") as scratch, self._translated(), self._transfer:
            if location in {file.path for file in self._client.list_artifacts(run_id, folder)}:
                content = Path(self._client.download_artifacts(run_id, location, scratch)).read_bytes()
        if content is None or hashlib.sha256(content).hexdigest() != sha256:
            raise Corrupt(f"a stored document of {model_version} is {'gone' if content is None else 'not what it was'} ({location})")
        return content

    @property
    def _client(self) -> MlflowClient:
        with self._making:
            if self._made is None:
                os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
                from mlflow import MlflowClient  # noqa: PLC0415  seconds to import

                self._made = MlflowClient(self._uri, registry_uri=self._uri)
            return self._made

    def _is_registered(self, model: str) -> bool:
        with self._translated(suppress_missing=True), self._ask:
            self._client.get_registered_model(model)
            return True
        return False

    def _unknown(self, model_version: ModelVersion) -> NotFound:
        """What to say of a version that does not exist; also if its model does not."""
        return unknown_version(model_version, [info.model_version.version for info in self.versions(model_version.model)])

    def _is_intact(self, info: VersionInfo) -> bool:
        assert info.run_id is not None
        assert info.bundle is not None
        assert info.bundle_sha256 is not None
        with tempfile.TemporaryDirectory(prefix="modelway-bundle-") as scratch:
            try:
                self._download(info.model_version, info.run_id, info.bundle, info.bundle_sha256, Path(scratch))
            except Corrupt:
                return False
        return True

    def _download(self, model_version: ModelVersion, run_id: str, location: str, sha256: str, scratch: Path) -> Path:
        """Fetch and verify a bundle; where it lies under `scratch`. Raises Corrupt if it is not what it was, or gone."""
        with self._translated(), self._transfer:
            present = {file.path for file in self._client.list_artifacts(run_id, location)}
            # Where in `scratch` it lands depends on the kind of store.
            found = self._client.download_artifacts(run_id, location, str(scratch)) if present else scratch / location
        try:
            return Bundle.open(Path(found), expected_sha256=sha256).root
        except (Corrupt, NotFound) as error:
            raise Corrupt(f"the stored bundle of {model_version} is not what it was ({error.what})", "Export the version again.") from error

    @contextmanager
    def _translated(self, *, suppress_missing: bool = False) -> Iterator[None]:
        """Turn errors of MLflow, its store and the network into ours; what does not exist ends the block silently if asked."""
        try:
            yield
        except Exception as error:
            if suppress_missing and getattr(error, "error_code", None) == _DOES_NOT_EXIST:
                return
            ours = self._ours(error)
            if ours is error:
                raise
            raise ours from error

    def _ours(self, error: Exception) -> Exception:
        from mlflow.exceptions import MlflowException  # noqa: PLC0415
        from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

        if not isinstance(error, MlflowException | SQLAlchemyError | OSError):  # requests' errors are OSErrors
            return error
        reason = _without_password(" ".join(str(getattr(error, "message", error)).split()))[:300]
        code = getattr(error, "error_code", None)
        if code == _DOES_NOT_EXIST:
            return NotFound(f"MLflow does not have it ({reason})")
        if code == _INVALID:
            return UsageError(f"MLflow does not take it ({reason})")
        return Unavailable(
            f"MLflow does not answer ({_without_password(self._uri)}: {reason})",
            "Check that it runs (`modelway status`) and that MODELWAY_TRACKING_URI is right.",
        )


def _document_tag(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,99}", name):
        raise UsageError(f"invalid name of a document ({name!r})", "Use lower-case letters, digits, '-' and '.'.")
    return f"modelway.{name}"


class _HttpSettings:
    """MLflow's HTTP settings, for as long as a `with` block of any thread lasts.

    The environment belongs to the whole process, so the blocks are counted: while any transfer runs the longest time-out
    counts, and when the last block ends everything is as before. The variables exist from the first block on, with MLflow's
    defaults: changing the value of a variable is safe while native code reads the environment, adding and removing is not.
    """

    _DEFAULTS: Mapping[str, str] = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "120",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "7",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "true",
    }
    _lock = threading.Lock()
    _running: list[int] = []  # noqa: RUF012  time-outs of the blocks that run now, of all threads
    _before: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = math.ceil(timeout_s)

    def __enter__(self) -> None:
        with self._lock:
            if not self._running:
                self._before.update({name: os.environ.get(name, default) for name, default in self._DEFAULTS.items()})
            self._running.append(self._timeout_s)
            self._apply()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._running.remove(self._timeout_s)
            self._apply()

    def _apply(self) -> None:
        os.environ.update(self._before)
        if self._running:
            values = (str(max(self._running)), "0", "false")
            os.environ.update(zip(self._DEFAULTS, values, strict=True))


def _info(version: MlflowVersion) -> VersionInfo:
    tags = {str(key): str(value) for key, value in version.tags.items()}
    location, mark, sha256 = tags.get(BUNDLE_TAG, "").partition(_DIGEST_MARK)
    return VersionInfo(
        model_version=ModelVersion(str(version.name), int(version.version)),
        run_id=version.run_id or tags.get(RUN_TAG) or None,
        bundle=location if mark else None,
        bundle_sha256=sha256 if mark else None,
        created_at=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
        tags=tags,
    )


def _without_password(text: str) -> str:
    """The text with every URL in it as it is without user and password."""
    return re.sub(r"//[^/\s]*@", "//", text)
