"""A model registry in memory, for tests of what stands on it. Passes the contract of the real one.

registry = MemoryRegistry()
version = registry.register("digits")         # digits/1
registry.attach_bundle(version, bundle.root)
registry.down = True                          # every call raises Unavailable
"""

from __future__ import annotations

import hashlib
import re
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from registry.bundle import Bundle
from registry.errors import Corrupt, NotFound, Unavailable, UsageError
from registry.names import ModelVersion, check_channel, check_model_name
from registry.ports import VersionInfo
from registry.registry_refusals import never_exported, no_run, not_new, unknown_model, unknown_version

Files = dict[str, bytes]


class MemoryRegistry:
    """Implements `registry.ports.ModelRegistry`. Safe for threads."""

    def __init__(self) -> None:
        self.down = False
        self._lock = threading.RLock()
        self._versions: dict[str, list[VersionInfo]] = {}
        self._aliases: dict[str, dict[str, int]] = {}
        self._bundles: dict[tuple[ModelVersion, str], Files] = {}
        self._documents: dict[tuple[ModelVersion, str], tuple[bytes, str]] = {}

    def register_model(self, model: str) -> None:
        """Make a model without versions, if there is none."""
        with self._lock:
            self._versions.setdefault(check_model_name(model), [])

    def register(self, model: str, *, run_id: str | None = "run", tags: Mapping[str, str] | None = None) -> ModelVersion:
        """Make a new version of the model, and the model if need be."""
        with self._lock:
            versions = self._versions.setdefault(check_model_name(model), [])
            version = ModelVersion(model, len(versions) + 1)
            info = VersionInfo(
                model_version=version, run_id=run_id, bundle=None, bundle_sha256=None, created_at=datetime.now(UTC), tags=dict(tags or {})
            )
            versions.append(info)
            return version

    def damage(self, model_version: ModelVersion, file: str, content: bytes | None) -> None:
        """Replace a file of the version's stored bundle; None removes it."""
        with self._lock:
            info = self.version(model_version)
            assert info.bundle is not None
            files = self._bundles[model_version, info.bundle]
            files.pop(file, None)
            if content is not None:
                files[file] = content

    def remove_alias(self, model: str, alias: str) -> None:
        """Delete an alias, as somebody would by hand."""
        self._aliases[model].pop(alias, None)

    def registered_models(self) -> Sequence[str]:
        with self._lock:
            self._check_up()
            return sorted(self._versions)

    def versions(self, model: str) -> Sequence[VersionInfo]:
        check_model_name(model)
        with self._lock:
            self._check_up()
            if model not in self._versions:
                raise unknown_model(model, sorted(self._versions))
            return tuple(self._versions[model])

    def version(self, model_version: ModelVersion) -> VersionInfo:
        versions = self.versions(model_version.model)
        for info in versions:
            if info.model_version == model_version:
                return info
        raise unknown_version(model_version, [info.model_version.version for info in versions])

    def aliases(self, model: str) -> Mapping[str, int]:
        with self._lock:
            self._check_up()
            return dict(self._aliases.get(model, {}))

    def set_alias(self, model_version: ModelVersion, alias: str) -> None:
        with self._lock:
            self.version(model_version)
            self._aliases.setdefault(model_version.model, {})[check_channel(alias)] = model_version.version

    def set_tag(self, model_version: ModelVersion, key: str, value: str) -> None:
        with self._lock:
            info = self.version(model_version)
            self._replace(replace(info, tags={**info.tags, key: value}))

    def attach_bundle(self, model_version: ModelVersion, bundle: Path) -> VersionInfo:
        with self._lock:
            info = self.version(model_version)
            sha256 = Bundle.open(bundle).sha256
            if info.run_id is None:
                raise no_run(model_version)
            location = f"bundles/{sha256[:16]}"
            files = {path.relative_to(bundle).as_posix(): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
            self._bundles[model_version, location] = files
            attached = replace(info, bundle=location, bundle_sha256=sha256)
            self._replace(attached)
            return attached

    def fetch_bundle(self, model_version: ModelVersion, into: Path) -> Path:
        if into.exists():
            raise not_new(into)
        with self._lock:
            info = self.version(model_version)
            if info.bundle is None:
                raise never_exported(model_version)
            files = dict(self._bundles[model_version, info.bundle])
        into.mkdir(parents=True)
        try:
            for name, content in files.items():
                (into / name).parent.mkdir(parents=True, exist_ok=True)
                (into / name).write_bytes(content)
            Bundle.open(into, expected_sha256=info.bundle_sha256)
        except (Corrupt, NotFound) as error:
            shutil.rmtree(into)
            raise Corrupt(f"the stored bundle of {model_version} is not what it was ({error.what})", "Export the version again.") from error
        return into

    def attach_document(self, model_version: ModelVersion, name: str, content: bytes | None) -> None:
        with self._lock:
            if self.version(model_version).run_id is None:
                raise no_run(model_version)
            if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,99}", name):
                raise UsageError(f"invalid name of a document ({name!r})")
            self._documents.pop((model_version, name), None)
            if content is not None:
                self._documents[model_version, name] = (content, hashlib.sha256(content).hexdigest())

    def document(self, model_version: ModelVersion, name: str) -> bytes | None:
        with self._lock:
            self.version(model_version)
            content, sha256 = self._documents.get((model_version, name), (None, ""))
        if content is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise Corrupt(f"a stored document of {model_version} is not what it was ({name})")
        return content

    def damage_document(self, model_version: ModelVersion, name: str, content: bytes) -> None:
        """Replace the stored content behind the registry's back."""
        self._documents[model_version, name] = (content, self._documents[model_version, name][1])

    def _replace(self, info: VersionInfo) -> None:
        versions = self._versions[info.model_version.model]
        versions[info.model_version.version - 1] = info

    def _check_up(self) -> None:
        if self.down:
            raise Unavailable("the registry does not answer (memory)", "It was taken down by the test.")
