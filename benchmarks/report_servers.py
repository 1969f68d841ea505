"""The sections of the document about servers and models. Pure: results in, Markdown out."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.campaign import Campaign
from benchmarks.goals import TRITON
from benchmarks.markdown import count, table, times
from benchmarks.parts import Models, Servers
from benchmarks.rates import BINARY, JSON, Rates, Summary
from benchmarks.servers import stock_torchserve
from benchmarks.servers.modelway import GATEWAY, NODE, SOCKETS

STOCK = stock_torchserve.RIVAL.title


def rates_section(campaign: Campaign, plot: str) -> str:
    """Closed loops: one table of what is compared, one with the rate at each number of connections, for each form."""
    rates = campaign.rates
    num_rounds = 1 + max((cell.round for cell in rates.cells if not cell.fraction), default=0)
    parts = [
        "## Throughput and latency",
        "An MLP 1000-500-250-10 in float32; each request is one row: 4,000 bytes of numbers in binary, about 12 kB in JSON. Every server "
        "runs the same ONNX file in ONNX Runtime, with two workers of one thread each. Closed loop: each connection sends its next request "
        f"when the last one is answered. Medians of {num_rounds} interleaved rounds; all servers are up, and those that are not being "
        "measured are stopped (SIGSTOP), so that none takes anything from another. The client is a process of its own on the same "
        "machine. Every status is checked, and the numbers of every 20th answer; requests/s are of good answers only. "
        "A ratio is the median of the ratios of each round's best.",
    ]
    if plot:
        parts.append(f"![Throughput against p99]({plot})")
    parts += [_form(rates, form) for form in (BINARY, JSON)]
    parts.append(
        f"- *{SOCKETS}*: the request as the gateway sends it, on the Unix sockets of the two workers.\n"
        f"- *{GATEWAY}*: what a client gets, Open Inference Protocol v2 through Envoy, with per-release histograms on.\n"
        f"- *{NODE}*: the same request on the Unix socket of TorchServe, the gateway's second way."
    )
    if campaign.broken:
        broken = "\n".join(f"- {title}: {' '.join(why.split())[:300]}" for title, why in campaign.broken.items())
        parts.append(f"**Not measured, because they did not start:**\n\n{broken}")
    return "\n\n".join(parts)


def _form(rates: Rates, form: str) -> str:
    servers = sorted((s for s in rates.servers if rates.best(s, form).requests_per_s), key=lambda s: -rates.best(s, form).requests_per_s)
    triton = _better_triton(rates, form)
    compared = [
        (
            server,
            count(best.requests_per_s),
            best.connections,
            f"{count(best.slowest_per_s)} to {count(best.fastest_per_s)}",
            times(rates.ratio_of_best(server, STOCK, form)),
            times(rates.ratio_of_best(server, triton, form)) if triton else "-",
            _ms(rates.summary(server, form, 1), "p50_ms"),
            _ms(rates.summary(server, form, 1), "p99_ms"),
            _ms(rates.summary(server, form, 32), "p50_ms"),
            _ms(rates.summary(server, form, 32), "p99_ms"),
            rates.failed(server, form),
        )
        for server in servers
        for best in [rates.best(server, form)]
    ]
    header: tuple[str, ...] = ("server", "best requests/s", "at connections", "slowest to fastest round", "times stock", "times Triton")
    header += ("p50 at 1, ms", "p99 at 1, ms", "p50 at 32, ms", "p99 at 32, ms", "failed")
    connections = rates.connections()
    every = [(server, *(count(rates.summary(server, form, number).requests_per_s) for number in connections)) for server in servers]
    return "\n\n".join(
        (
            f"### {form[0].upper()}{form[1:]}",
            table(header, compared),
            "Requests/s at each number of connections:",
            table(("server", *map(str, connections)), every),
        )
    )


def _better_triton(rates: Rates, form: str) -> str:
    found = [server for server in rates.servers if server.startswith(TRITON)]
    return max(found, key=lambda server: rates.best(server, form).requests_per_s, default="")


def _ms(summary: Summary, percentile: str) -> str:
    value = getattr(summary, percentile)
    return f"{value:.2f}" if value else "-"


def open_section(rates: Rates) -> str:
    """Open loops."""
    header = ["server", "form"]
    for fraction in rates.fractions():
        header += [f"arrivals/s at {fraction:.0%}", "p50, ms", "p99, ms"]
    rows = []
    for server in rates.servers:
        for form in (BINARY, JSON):
            found = [rates.open_summary(server, form, fraction) for fraction in rates.fractions()]
            if any(each.requests_per_s for each in found):
                cells = [(count(each.requests_per_s), _ms(each, "p50_ms"), _ms(each, "p99_ms")) for each in found]
                rows.append((server, form, *(value for cell in cells for value in cell)))
    return "\n\n".join(
        (
            "## Open loop",
            "Requests arrive by a Poisson process whether or not the last ones were answered, at a share of each server's own best "
            "closed-loop rate, over at most 64 connections; latency counts from the time at which a request was due.",
            table(header, rows),
        )
    )


def large_section(large: Mapping[int, Campaign]) -> str:
    """1 MB and 5 MB."""
    parts = [
        "## Large inputs",
        "One float32 input of 1 MB or 5 MB in binary, and a model that only takes its mean: what moving bytes costs. Servers without a "
        "binary form are left out; base64 counts as one.",
    ]
    for num_bytes, campaign in large.items():
        rates = campaign.rates
        connections = rates.connections()
        header = ["server"]
        for number in connections:
            header += [f"requests/s at {number}", "p50, ms", "p99, ms"]
        rows = []
        for server in sorted(rates.servers, key=lambda s: -rates.best(s, BINARY).requests_per_s):
            found = [rates.summary(server, BINARY, number) for number in connections]
            cells = [(count(each.requests_per_s), _ms(each, "p50_ms"), _ms(each, "p99_ms")) for each in found]
            rows.append((server, *(value for cell in cells for value in cell), rates.failed(server, BINARY)))
        parts += [f"{num_bytes / 1e6:g} MB:", table((*header, "failed"), rows)]
        parts += [f"{title} was not measured: {' '.join(why.split())[:300]}" for title, why in campaign.broken.items()]
    return "\n\n".join(parts)


def engine_section(servers: Servers) -> str:
    """ONNX Runtime alone."""
    rows = []
    for batch in servers.engine_rounds[0] if servers.engine_rounds else ():
        rates = [found[batch] for found in servers.engine_rounds]
        rows.append((f"ONNX Runtime, batch {batch}", count(statistics.median(rates)), f"{count(min(rates))} to {count(max(rates))}"))
    text = "The engine in process, with one thread and no server: the ceiling of what one worker can do with the MLP."
    return "\n\n".join(("## The engine alone", text, table(("engine", "rows/s", "slowest to fastest round"), rows)))


def models_section(models: Models) -> str:
    """EfficientNet-Lite0."""
    connections = models.rounds[0].connections()
    rows: list[Sequence[object]] = [
        ("ONNX Runtime in process, 1 process of one thread, batch 1", count(statistics.median(models.single_per_s)), "", "1.00", ""),
        ("ONNX Runtime in process, 2 processes of one thread, batch 1", count(statistics.median(models.engine_per_s)), "", "1.00", ""),
    ]
    for place in (SOCKETS, GATEWAY, NODE):
        for number in connections:
            found = [rates.summary(place, BINARY, number) for rates in models.rounds]
            rows.append(
                (
                    f"{place}, {number} connection{'s' * (number > 1)}",
                    count(statistics.median(each.requests_per_s for each in found)),
                    f"{statistics.median(each.p50_ms for each in found):.1f}",
                    times(models.ratio(place, models.single_per_s if number == 1 else models.engine_per_s, number)),
                    sum(each.failed for each in found),
                )
            )
    return "\n\n".join(
        (
            "## Where arithmetic is the work",
            "EfficientNet-Lite0 with ImageNet weights, one image [3, 224, 224] in float32 in each request (602,112 bytes), binary, two "
            "workers of one thread. One connection keeps one worker busy, so it is compared with one process; more with two.",
            table(("", "images/s", "p50, ms", "times the engine in process", "failed"), rows),
        )
    )


def setup_section(campaign: Campaign, how: Mapping[str, str], versions: Mapping[str, str]) -> str:
    """How each server was set up."""
    rows = []
    for title, setting in campaign.settings.items():
        compared = "; ".join(f"{name}: {count(rate)}" for name, rate in campaign.calibrations.get(title, {}).items())
        rows.append((title, versions.get(title, ""), how.get(title, ""), setting, compared))
    return "\n\n".join(
        (
            "## How the servers were set up",
            "Each in an environment of its own (`benchmarks/environments`, built by `make bench-setup`). Where several settings were "
            "declared the better one was measured; what it did in a short comparison is in the last column (requests/s, geometric mean of "
            "the forms, the better of 8 and 32 connections). The adapters are in `benchmarks/servers`, what runs inside the servers in "
            "`benchmarks/apps`.",
            table(("server", "version", "how", "setting", "settings compared"), rows),
        )
    )
