"""What a server under measurement is, as a value: how it is started and which requests it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.encodings import Encoding
from benchmarks.workloads import Workload

NUM_WORKERS = 2  # of every server, each with one thread
MAX_BATCH = 32  # of every server that batches
APPS = Path(__file__).parent.parent / "apps"
MAX_BODY_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One declared way to run a server. The better one of its settings is measured."""

    name: str
    options: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a server is to run.

    Attributes:
        python: The interpreter of its environment.
        directory: An empty directory of its own.
        ports: Free TCP ports, the first for requests.
    """

    python: Path
    directory: Path
    workload: Workload
    ports: tuple[int, ...]

    @property
    def port(self) -> int:
        """Where requests go."""
        return self.ports[0]

    @property
    def bin(self) -> Path:
        """The directory of its environment's programs."""
        return self.python.parent


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A program to start. `env` is added to a clean environment."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A server of others.

    Attributes:
        name: What `--servers` calls it.
        title: Its name in the tables.
        package: The distribution whose version is shown.
        environment: Its file in `benchmarks/environments`, without suffix; empty for this interpreter's own.
        how: One sentence for the document: how it was set up.
        paths: Where requests in each encoding go; `{model}` stands for the model's name.
        settings: The declared ways to run it.
        launch: Writes its files, and says what to start.
        takes_large: Whether it takes the inputs of 1 MB and 5 MB in its binary encoding.
    """

    name: str
    title: str
    package: str
    environment: str
    how: str
    paths: Mapping[Encoding, str]
    settings: tuple[Setting, ...]
    launch: Callable[[Place, Setting], Launch]
    takes_large: bool = True
