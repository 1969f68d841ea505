"""Several servers, the same questions, in interleaved rounds. Only the one that is measured runs; the others are stopped meanwhile."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from benchmarks.encodings import Encoding
from benchmarks.http_client import Load, LoadClient, Target
from benchmarks.rates import BINARY, JSON, Cell, Rates
from benchmarks.servers.rival import Rival, Setting
from benchmarks.servers.running import RunningRival
from benchmarks.workloads import Workload
from registry.errors import ModelwayError

Say = Callable[[str], None]
_OPEN_CONNECTIONS = 64
_CALIBRATION_CONNECTIONS = (8, 32)


class Running(Protocol):
    """A server that is up."""

    @property
    def targets(self) -> Sequence[Target]:
        """Where requests go."""

    def pause(self) -> None:
        """Stop all its processes in their tracks."""

    def resume(self) -> None:
        """Let them go on, and return when they answer."""

    def stop(self) -> None:
        """End it. Idempotent."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured.

    Attributes:
        forms: BINARY, JSON or both.
        connections: Of the closed loops.
        fractions: Of each server's own best closed-loop rate, the arrival rates of the open loops.
        num_open_rounds: Rounds of the open loops.
        calibration_s: Seconds of each cell with which a server's declared settings are compared; 0 takes the first.
    """

    forms: Sequence[str]
    connections: Sequence[int]
    fractions: Sequence[float] = ()
    num_rounds: int
    num_open_rounds: int = 0
    cell_s: float
    open_s: float = 0.0
    warmup_s: float
    calibration_s: float = 0.0


@dataclass(kw_only=True)
class Campaign:
    """What came of it.

    Attributes:
        settings: Title -> the setting that was measured.
        calibrations: Title -> the best rate of each declared setting, where they were compared.
        broken: Title -> why it was not measured.
    """

    cells: list[Cell] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    calibrations: dict[str, dict[str, float]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def rates(self) -> Rates:
        """The cells, to be asked."""
        return Rates(self.cells)


def form_of(target: Target) -> str:
    """BINARY or JSON."""
    return BINARY if Encoding(target.encoding).is_binary else JSON


def run(ours: Sequence[Running], rivals: Sequence[Rival], bench: Bench) -> Campaign:
    """Start the rivals, measure all, stop the rivals. `ours` are up, and are stopped by whoever started them."""
    running = list(ours)
    for each in ours:
        each.pause()
    try:
        for rival in rivals:
            started = bench.start(rival)
            if started is not None:
                running.append(started)
        bench.closed_rounds(running)
        bench.open_rounds(running)
    finally:
        for each in running:
            each.stop()
    return bench.campaign


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One campaign while it runs.

    Attributes:
        directory: Where rivals get directories of their own.
    """

    workload: Workload
    directory: Path
    plan: Plan
    client: LoadClient
    say: Say
    campaign: Campaign = field(default_factory=Campaign)

    def start(self, rival: Rival) -> RunningRival | None:
        """The rival with the better one of its settings, stopped in its tracks; None if it does not work."""
        self.say(f"starting {rival.title}")
        try:
            setting = self._choose(rival)
            started = self._up(rival, setting, rival.name)
        except (ModelwayError, OSError, subprocess.SubprocessError) as error:
            called = isinstance(error, subprocess.CalledProcessError) and error.stderr
            why = called.decode(errors="replace")[-300:] if called else str(error)
            self.campaign.broken[rival.title] = why.strip()
            self.say(f"  FAILED: {why.strip()}")
            return None
        self.campaign.settings[rival.title] = setting.name
        started.pause()
        return started

    def _up(self, rival: Rival, setting: Setting, name: str) -> RunningRival:
        started = RunningRival(rival, setting, self.workload, self.directory / name)
        try:
            started.wait_ready([target for target in started.targets if form_of(target) in self.plan.forms])
        except BaseException:
            started.stop()
            raise
        return started

    def _choose(self, rival: Rival) -> Setting:
        """The setting with the best rate, the geometric mean of the forms."""
        if len(rival.settings) == 1 or not self.plan.calibration_s:
            return rival.settings[0]
        scores: dict[str, float] = {}
        for index, setting in enumerate(rival.settings):
            try:
                started = self._up(rival, setting, f"{rival.name}-{index}")
            except ModelwayError as error:
                self.say(f"  {setting.name}: does not work ({error})")
                scores[setting.name] = 0.0
                continue
            try:
                scores[setting.name] = self._score(started)
            finally:
                started.stop()
            self.say(f"  {setting.name}: {scores[setting.name]:,.0f} requests/s")
        self.campaign.calibrations[rival.title] = scores
        return max(rival.settings, key=lambda setting: scores[setting.name])

    def _score(self, started: RunningRival) -> float:
        loads = [
            Load(connections=number, duration_s=self.plan.calibration_s, warmup_s=self.plan.warmup_s) for number in _CALIBRATION_CONNECTIONS
        ]
        targets = [target for target in started.targets if form_of(target) in self.plan.forms]
        best = [max(self.client.measure(target, load).requests_per_s for load in loads) for target in targets]
        return statistics.geometric_mean(best) if all(best) else 0.0

    def closed_rounds(self, running: Sequence[Running]) -> None:
        """Each round, at each number of connections, each server in each form."""
        for number in range(self.plan.num_rounds):
            for connections in self.plan.connections:
                load = Load(connections=connections, duration_s=self.plan.cell_s, warmup_s=self.plan.warmup_s)
                for server in _turns(running, number):
                    targets = [target for target in server.targets if form_of(target) in self.plan.forms]
                    self._measure(server, number, [(target, load, 0.0) for target in targets])

    def open_rounds(self, running: Sequence[Running]) -> None:
        """The same at the shares of each server's own best rate."""
        rates = self.campaign.rates
        for number in range(self.plan.num_open_rounds):
            for fraction in self.plan.fractions:
                for server in _turns(running, number):
                    wanted = []
                    for target in server.targets:
                        rate_per_s = fraction * rates.best(target.server, form_of(target)).requests_per_s
                        if form_of(target) in self.plan.forms and rate_per_s:
                            load = Load(
                                connections=_OPEN_CONNECTIONS,
                                duration_s=self.plan.open_s,
                                warmup_s=self.plan.warmup_s,
                                rate_per_s=rate_per_s,
                            )
                            wanted.append((target, load, fraction))
                    self._measure(server, number, wanted)

    def _measure(self, server: Running, number: int, wanted: Sequence[tuple[Target, Load, float]]) -> None:
        """Let the server go on, measure each of its targets, and stop it in its tracks again."""
        if not wanted:
            return
        server.resume()
        try:
            for target, load, fraction in wanted:
                cell = Cell(
                    server=target.server,
                    form=form_of(target),
                    connections=load.connections,
                    fraction=fraction,
                    round=number,
                    measured=self.client.measure(target, load),
                )
                self.campaign.cells.append(cell)
                self.say(f"  {cell.in_words}")
        finally:
            server.pause()


def _turns(running: Sequence[Running], number: int) -> list[Running]:
    """Each round begins with another server."""
    first = number % len(running) if running else 0
    return [*running[first:], *running[:first]]
