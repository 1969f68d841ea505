"""What `modelway tune` found for one variant: how it runs best on a machine, and the measurements that say so.

Kept with the version as a document of its own (`tuning.<variant>`), beside the bundle, which never changes. A tuning is
of one bundle: after another export it no longer counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from registry.bundle import canonical_json
from registry.errors import Corrupt, UsageError
from registry.names import ModelVersion
from registry.ports import ModelRegistry


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class WorkerLayout:
    """How the workers of one archive share a machine.

    Attributes:
        num_workers: Workers on each node.
        num_threads: Threads that one run of the model may use, in each worker.
        batch_size: Requests that one worker runs together, at most.
    """

    num_workers: int
    num_threads: int
    batch_size: int

    def __post_init__(self) -> None:
        if min(self.num_workers, self.num_threads, self.batch_size) < 1:
            raise UsageError(f"workers, threads and batch size must be 1 or more ({self})")

    @property
    def num_cores(self) -> int:
        """Cores that the model can keep busy."""
        return self.num_workers * self.num_threads

    def __str__(self) -> str:
        return f"{self.num_workers} worker(s) x {self.num_threads} thread(s), batch {self.batch_size}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning:
    """The choice for one variant of one version, with what it was chosen from.

    Attributes:
        bundle_sha256: The bundle whose variant was measured.
        layout: The choice.
        measured: JSON values that a reader wants to see: the limit, the load, every measurement, the machine.
    """

    version: ModelVersion
    variant: str
    bundle_sha256: str
    layout: WorkerLayout
    measured: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def to_bytes(self) -> bytes:
        """As stored: canonical JSON."""
        content = {
            "version": str(self.version),
            "variant": self.variant,
            "bundle_sha256": self.bundle_sha256,
            "layout": asdict(self.layout),
            "measured": dict(self.measured),
        }
        return canonical_json(content).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Tuning:
        """The inverse of `to_bytes`. Raises Corrupt."""
        try:
            data = json.loads(content)
            model, _, version = str(data["version"]).partition("/")
            return cls(
                version=ModelVersion(model, int(version)),
                variant=str(data["variant"]),
                bundle_sha256=str(data["bundle_sha256"]),
                layout=WorkerLayout(**{name: int(value) for name, value in data["layout"].items()}),
                measured=dict(data["measured"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as error:
            raise Corrupt(f"unreadable tuning ({type(error).__name__}: {error})", "Run `modelway tune` again.") from error


def document_name(variant: str) -> str:
    """Under which name a registry keeps the tuning of a variant."""
    return f"tuning.{variant}"


def store_tuning(registry: ModelRegistry, tuning: Tuning) -> None:
    """Keep the tuning with its version, in place of an earlier one. Raises NotFound, Unavailable."""
    registry.attach_document(tuning.version, document_name(tuning.variant), tuning.to_bytes())


def read_tuning(registry: ModelRegistry, version: ModelVersion, variant: str, bundle_sha256: str) -> Tuning | None:
    """The tuning that counts for a variant of the bundle; None if there is none, or it is of another export.

    Raises:
        Corrupt: It is not what was stored, or not of this variant.
        Unavailable: The registry does not answer.
    """
    content = registry.document(version, document_name(variant))
    if content is None:
        return None
    tuning = Tuning.from_bytes(content)
    if (tuning.version, tuning.variant) != (version, variant):
        raise Corrupt(
            f"the tuning of {version} ({variant}) is of another ({tuning.version}, {tuning.variant})", "Run `modelway tune` again."
        )
    return tuning if tuning.bundle_sha256 == bundle_sha256 else None
