"""What the platform costs at rest: resident memory of each part, the time until it is up, and the time of `--help`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from benchmarks.platform_under_test import PlatformUnderTest
from modelway.child_record import read_children

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of the platform: its own process, and those below it (workers)."""

    name: str
    own_bytes: int
    num_below: int
    below_bytes: int

    @property
    def total_bytes(self) -> int:
        """Both. Pages that processes share count once for each."""
        return self.own_bytes + self.below_bytes


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """All of it. Seconds are medians; `up_fresh_s` is the one start in an empty home."""

    parts: Sequence[Part]
    stock: Part
    up_fresh_s: float
    up_s: Sequence[float]
    help_s: Sequence[float]

    @property
    def median_help_s(self) -> float:
        """Seconds of `modelway --help`."""
        return statistics.median(self.help_s)


def memory_of(name: str, pid: int) -> Part:
    """Resident memory of a process and its descendants."""
    process = psutil.Process(pid)
    below = process.children(recursive=True)
    return Part(
        name=name,
        own_bytes=process.memory_info().rss,
        num_below=len(below),
        below_bytes=sum(child.memory_info().rss for child in below),
    )


def memory_of_parts(platform: PlatformUnderTest) -> list[Part]:
    """Each child of the supervisor, and the supervisor itself, without what it started."""
    children = read_children(platform.settings.run_dir)
    parts = [memory_of(child.record.name, child.record.pid) for child in children if child.running and child.record.pid is not None]
    supervisors = sorted({child.supervisor_pid for child in children if child.supervisor_pid is not None})
    for pid in supervisors:
        own = psutil.Process(pid).memory_info().rss
        parts.append(Part(name="supervisor", own_bytes=own, num_below=0, below_bytes=0))
    return parts


def start_times(platform: PlatformUnderTest, num_restarts: int) -> tuple[float, list[float]]:
    """Seconds of `modelway up --detach` in an empty home, and then again in the same one; leaves it up."""
    fresh_s, again_s = platform.command("up", "--detach"), []
    for _ in range(num_restarts):
        platform.command("down")
        again_s.append(platform.command("up", "--detach"))
    return fresh_s, again_s
