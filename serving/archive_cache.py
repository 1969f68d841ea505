"""Archives on the control plane's disk, by name. What is here can be released without the registry."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from registry.bundle import Bundle
from registry.certificate import Certificate
from registry.errors import Corrupt, NotFound, Refused
from registry.gates import choose_variant
from registry.names import ModelVersion
from registry.ports import ModelRegistry
from registry.release import ReleaseDraft
from registry.signature import Signature
from registry.tuning import read_tuning
from serving.archive import DIRECTORY_ABOVE_BYTES, Archive, RuntimeOptions, build_archive
from serving.archive_forms import has_digest, remove_archive


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltArchive:
    """An archive with what the gates need to know of it."""

    archive: Archive
    variant: str
    bundle_sha256: str
    certificate: Certificate
    certificate_sha256: str
    signature: Signature
    options: RuntimeOptions


class ArchiveCache:
    """Builds archives from bundles and keeps them. Building is reproducible, so a lost archive can be built again."""

    def __init__(
        self, directory: Path, registry: ModelRegistry, options: RuntimeOptions, *, directory_above_bytes: int = DIRECTORY_ABOVE_BYTES
    ) -> None:
        self._directory = directory
        self._registry = registry
        self._options = options
        self._directory_above_bytes = directory_above_bytes

    def build(self, version: ModelVersion, variant: str | None, options: RuntimeOptions | None = None) -> BuiltArchive:
        """Fetch the version's bundle, choose the variant (None: the fastest that passes) and build its archive.

        Args:
            options: None takes the settings' with what `modelway tune` found for the variant over them.

        Raises:
            NotFound: Unknown version or variant.
            Refused: The version was never exported, or no variant passes and none was named.
            Corrupt: The bundle is not what it was.
            Unavailable: The registry does not answer.
        """
        info = self._registry.version(version)
        if info.bundle is None:
            raise Refused(f"{version} was never exported", f"Run `modelway export {version}` first.")
        self._directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=self._directory) as scratch:
            bundle = Bundle.open(self._registry.fetch_bundle(version, Path(scratch) / "bundle"), expected_sha256=info.bundle_sha256)
            chosen = choose_variant({name: bundle.certificate(name) for name in bundle.variants()}, variant)
            options = options or self._tuned_options(version, chosen, bundle.sha256)
            return BuiltArchive(
                archive=build_archive(bundle, chosen, version, self._directory, options, directory_above_bytes=self._directory_above_bytes),
                variant=chosen,
                bundle_sha256=bundle.sha256,
                certificate=bundle.certificate(chosen),
                certificate_sha256=bundle.certificate_sha256(chosen),
                signature=bundle.signature(),
                options=options,
            )

    def _tuned_options(self, version: ModelVersion, variant: str, bundle_sha256: str) -> RuntimeOptions:
        tuning = read_tuning(self._registry, version, variant, bundle_sha256)
        if tuning is None:
            return self._options
        layout = tuning.layout
        return replace(self._options, intra_op_threads=layout.num_threads, batch_size=layout.batch_size, num_workers=layout.num_workers)

    def ensure(self, release: ReleaseDraft) -> Path:
        """Path of the release's archive, digest checked; built again from the registry if it is gone or damaged.

        Raises:
            Corrupt: It cannot be had with the digest that the ledger names.
            NotFound, Unavailable: It is gone, and the registry does not have the version, or does not answer.
        """
        path = self._directory / release.archive
        if has_digest(path, release.archive_sha256):
            return path
        remove_archive(path)
        try:
            options = RuntimeOptions(**release.options) if release.options is not None else self._options
            rebuilt = self.build(release.model_version, release.variant, options).archive
        except (Refused, NotFound) as error:
            raise NotFound(f"archive {release.archive} is gone and cannot be built again ({error})") from error
        if (rebuilt.name, rebuilt.sha256) != (release.archive, release.archive_sha256):
            raise Corrupt(
                f"archive {release.archive} is gone, and building it again gave another one ({rebuilt.name})",
                "The version was exported again since, or Modelway was upgraded: promote the version anew.",
            )
        return path

    def remove_leftovers(self) -> None:
        """Delete what builds that were killed left behind. Call it while no build runs."""
        for leftover in self._directory.glob(".build-*"):
            shutil.rmtree(leftover, ignore_errors=True)
