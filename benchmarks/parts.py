"""The parts of a benchmark, each of which runs alone: servers (with large inputs), models, releases with footprint."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks import campaign, efficientnet, footprint, in_process, releases
from benchmarks.campaign import Bench, Campaign, Plan
from benchmarks.effort import Effort
from benchmarks.http_client import LoadClient
from benchmarks.mlp import MODEL
from benchmarks.platform_under_test import PlatformUnderTest
from benchmarks.rates import BINARY, JSON, Rates
from benchmarks.servers import stock_torchserve
from benchmarks.servers.modelway import GATEWAY, NODE, SOCKETS, RunningModelway
from benchmarks.servers.rival import NUM_WORKERS, Rival
from benchmarks.servers.running import RunningRival
from benchmarks.workloads import write_mean, write_mlp

Say = Callable[[str], None]


@dataclass(kw_only=True)
class Servers:
    """All servers with the MLP, and with large inputs.

    Attributes:
        large: Bytes of one input -> what was measured.
        engine_rounds: Batch size -> rows per second of the engine alone, for each round.
    """

    mlp: Campaign
    large: dict[int, Campaign] = field(default_factory=dict)
    engine_rounds: list[dict[int, float]] = field(default_factory=list)


@dataclass(kw_only=True)
class Models:
    """EfficientNet-Lite0 beside the engine in process.

    Attributes:
        rounds: The measurements of each round, alternating with those of the engine.
        engine_per_s: Images per second of the engine, NUM_WORKERS processes of one thread, for each round.
        single_per_s: The same of one process.
    """

    rounds: list[Rates] = field(default_factory=list)
    engine_per_s: list[float] = field(default_factory=list)
    single_per_s: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> dict[str, float]:
        """Place -> median over the rounds of its best rate divided by the engine's with the same threads."""
        return {place: self.ratio(place, self.engine_per_s, None) for place in (SOCKETS, GATEWAY, NODE)}

    def ratio(self, place: str, engine_per_s: Sequence[float], connections: int | None) -> float:
        """At a number of connections, or the best."""
        found = [rates.summary(place, BINARY, connections) if connections else rates.best(place, BINARY) for rates in self.rounds]
        return statistics.median(each.requests_per_s / engine for each, engine in zip(found, engine_per_s, strict=True))


def measure_servers(directory: Path, effort: Effort, rivals: Sequence[Rival], say: Say) -> Servers:
    """Modelway at three places and its rivals, with the MLP, then with large inputs."""
    say("servers: starting Modelway")
    directory.mkdir()
    mlp, means = write_mlp(directory), [write_mean(directory, width) for width in effort.large_widths]
    platform = PlatformUnderTest(directory / "home")
    try:
        platform.command("up", "--detach")
        platform.serve([mlp, *means])
        with LoadClient() as client:
            plan = Plan(
                forms=(BINARY, JSON),
                connections=effort.connections,
                fractions=effort.fractions,
                num_rounds=effort.num_rounds,
                num_open_rounds=effort.num_open_rounds,
                cell_s=effort.cell_s,
                open_s=effort.open_s,
                warmup_s=effort.warmup_s,
                calibration_s=effort.calibration_s,
            )
            bench = Bench(workload=mlp, directory=directory / "rivals", plan=plan, client=client, say=say)
            found = Servers(mlp=campaign.run([RunningModelway(platform, mlp)], rivals, bench))
            say("the engine alone")
            resting = RunningModelway(platform, mlp)
            resting.pause()
            found.engine_rounds = [in_process.measure(mlp, effort.cell_s) for _ in range(effort.num_rounds)]
            resting.resume()
            for mean in means:
                say(f"inputs of {4 * mean.width:,} bytes")
                large = [rival for rival in rivals if rival.takes_large and rival.title not in found.mlp.broken]
                chosen = [_only(rival, found.mlp.settings.get(rival.title)) for rival in large]
                plan = Plan(
                    forms=(BINARY,),
                    connections=effort.large_connections,
                    num_rounds=effort.num_large_rounds,
                    cell_s=effort.cell_s,
                    warmup_s=effort.warmup_s,
                )
                bench = Bench(workload=mean, directory=directory / f"rivals-{mean.width}", plan=plan, client=client, say=say)
                found.large[4 * mean.width] = campaign.run([RunningModelway(platform, mean)], chosen, bench)
    finally:
        platform.stop()
    return found


def _only(rival: Rival, setting: str | None) -> Rival:
    """The rival with the setting that was better with the MLP."""
    return replace(rival, settings=tuple(each for each in rival.settings if setting in (None, each.name)))


def measure_models(directory: Path, effort: Effort, say: Say) -> Models:
    """EfficientNet-Lite0 at each place, each round beside the engine in process with as many threads."""
    say("models: EfficientNet-Lite0")
    directory.mkdir()
    workload = efficientnet.prepare(directory)
    platform, found = PlatformUnderTest(directory / "home"), Models()
    plan = Plan(forms=(BINARY,), connections=effort.model_connections, num_rounds=1, cell_s=effort.model_cell_s, warmup_s=effort.warmup_s)
    try:
        platform.command("up", "--detach")
        platform.serve([workload])
        with LoadClient() as client:
            for _ in range(effort.num_model_rounds):
                ours = RunningModelway(platform, workload)
                bench = Bench(workload=workload, directory=directory, plan=plan, client=client, say=say)
                found.rounds.append(campaign.run([ours], [], bench).rates)
                ours.pause()
                found.engine_per_s.append(in_process.measure(workload, effort.model_cell_s, (1,), NUM_WORKERS)[1])
                found.single_per_s.append(in_process.measure(workload, effort.model_cell_s, (1,))[1])
                ours.resume()
                say(f"  the engine in process: {found.engine_per_s[-1]:,.1f} images/s, one process {found.single_per_s[-1]:,.1f}")
    finally:
        platform.stop()
    return found


def measure_platform(
    directory: Path, effort: Effort, *, with_releases: bool, with_footprint: bool, say: Say
) -> tuple[releases.Releases | None, footprint.Footprint | None]:
    """Memory and start times beside stock TorchServe, then releases under load."""
    say("releases and footprint: starting the platform")
    directory.mkdir()
    mlp = write_mlp(directory)
    platform, stock, trials, costs = PlatformUnderTest(directory / "home"), None, None, None
    try:
        up_fresh_s, up_s = footprint.start_times(platform, effort.num_restarts if with_footprint else 0)
        platform.register(3)
        platform.command("promote", f"{MODEL}/1")
        if with_footprint:
            stock = RunningRival(stock_torchserve.RIVAL, stock_torchserve.RIVAL.settings[0], mlp, directory / "stock")
            help_s = [platform.command("--help") for _ in range(effort.num_helps)]
            stock.wait_ready()
            time.sleep(effort.settle_s)
            parts = footprint.memory_of_parts(platform)
            idle_stock = footprint.memory_of(stock_torchserve.RIVAL.title, stock.pid)
            stock.stop()
            costs = footprint.Footprint(parts=parts, stock=idle_stock, up_fresh_s=up_fresh_s, up_s=up_s, help_s=help_s)
        if with_releases:
            say("releases under load")
            trials = releases.run(platform, num_warm=effort.num_warm, num_cold=effort.num_cold, say=say)
    finally:
        if stock is not None:
            stock.stop()
        platform.stop()
    return trials, costs
