"""`modelway demo`: the whole way on real data, every line measured in this run.

Train two versions of a small CNN on handwritten digits, export and certify them, serve the first, move to the second
through a canary under load, and roll back. Works on what an earlier demo left behind.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modelway.client import Client
from modelway.composition import open_registry, open_tracking
from modelway.control import ControlClient, Json
from modelway.gateway_access import open_client, open_load
from modelway.load import Answer, OpenLoopLoad
from modelway.settings import Settings
from registry.errors import ModelwayError, NotFound, Refused
from registry.names import ModelVersion
from registry.ports import ModelRegistry

MODEL = "digits"
CANARY_STEPS = "10%:3s,50%:3s"
REQUESTS_PER_S = 200.0
# Version 1 is narrow and brief, version 2 wider and longer: a second version that is worth promoting.
OVERRIDES: dict[int, tuple[str, ...]] = {
    1: ("model.init_args.width=8", "trainer.max_epochs=8"),
    2: ("model.init_args.width=16", "trainer.max_epochs=15"),
}

Say = Callable[[str], None]


class DemoFailed(ModelwayError):
    """The demo ran, and something that it promises did not hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadReport:
    """What the load saw."""

    num_sent: int
    failed: tuple[Answer, ...]
    by_version: dict[str, int]
    p50_ms: float
    p99_ms: float


def prepare_versions(settings: Settings, say: Say) -> None:
    """Train and export `digits/1` and `digits/2`, unless they are there already."""
    tracking = open_tracking(settings)
    registry = open_registry(tracking)
    for version in OVERRIDES:
        _prepare_version(ModelVersion(MODEL, version), registry, tracking.uri, tracking.artifact_root, say)


def _prepare_version(version: ModelVersion, registry: ModelRegistry, uri: str, artifact_root: str | None, say: Say) -> None:
    bundle = _bundle_of(version, registry)
    if bundle == "missing":
        from training.pipeline import train  # noqa: PLC0415  torch costs seconds, and a second demo does not train

        started = time.monotonic()
        trained = train("digits", OVERRIDES[version.version], tracking_uri=uri, artifact_root=artifact_root, progress=say)
        accuracy = trained.metrics["accuracy"]
        say(f"trained {trained.model_version} in {time.monotonic() - started:.1f} s: test accuracy {accuracy:.4f} (run {trained.run_id})")
        if trained.model_version != version:
            raise DemoFailed(f"expected {version}, the registry gave {trained.model_version}", "Use an empty MODELWAY_HOME.")
    if bundle:
        from training.export.stage import export_version  # noqa: PLC0415  as above

        with tempfile.TemporaryDirectory(prefix="modelway-export-") as workdir:
            report = export_version(version, registry, tracking_uri=uri, workdir=Path(workdir))
        for name, certificate in report.certificates.items():
            verdict = "passes" if certificate.passed else f"fails: {'; '.join(certificate.failures)}"
            say(f"  {name}{' (chosen)' if name == report.chosen else ''}: certificate {verdict}")
    else:
        say(f"{version} is trained and exported already")


def _bundle_of(version: ModelVersion, registry: ModelRegistry) -> str:
    """What the version lacks: `missing`, `unexported`, or nothing."""
    try:
        return "" if registry.version(version).bundle else "unexported"
    except NotFound:
        return "missing"


def run_releases(settings: Settings, say: Say) -> Json:
    """Promote, ask, canary under load, roll back; the facts. Raises DemoFailed if a promise did not hold."""
    from training.data.digits import held_out  # noqa: PLC0415  scikit-learn costs a second

    images, labels = held_out()
    with ControlClient(settings.control_url) as control, open_client(settings) as client:
        ensure_live(control, settings, 1, say)
        facts: Json = {"accuracy": measure_accuracy(client, images, labels, say)}
        facts |= measure_latency(client, images, say)
        payloads = [_payload(image) for image in images]
        with open_load(settings, f"/v2/models/{MODEL}/infer", payloads, REQUESTS_PER_S) as load:
            promoted = _timed(lambda: promote(control, settings, 2, steps=CANARY_STEPS, reason="demo: the wider network"))
            rolled_back = _timed(lambda: roll_back(control, settings, reason="demo: going back"))
            time.sleep(1.0)  # let the load see the version that it went back to
        facts |= report_load(load, promoted, rolled_back, say)
    if facts["failed"]:
        raise DemoFailed(f"{facts['failed']} of {facts['sent']} requests failed", "Look at the logs in MODELWAY_HOME/logs.")
    return facts


@dataclass(frozen=True, kw_only=True, slots=True)
class Timed:
    """A command with the moments in which it was given and acknowledged, in seconds of `time.monotonic`."""

    release: Json
    given_at: float
    acknowledged_at: float

    @property
    def seconds(self) -> float:
        """From command to acknowledgement."""
        return self.acknowledged_at - self.given_at


def _timed(command: Callable[[], Json]) -> Timed:
    given_at = time.monotonic()
    release = command()
    return Timed(release=release, given_at=given_at, acknowledged_at=time.monotonic())


def ensure_live(control: ControlClient, settings: Settings, version: int, say: Say) -> None:
    """Make the version the live one, at once."""
    body = {"version": version, "strategy": "immediate", "reason": "demo: the first version", "actor": settings.actor}
    answer = control.promote(MODEL, body)
    release = _wait_live(control, answer["release"])
    say(f"{MODEL}/{version} ({release['variant']}) is live in production, release {release['id']}")


def promote(control: ControlClient, settings: Settings, version: int, *, steps: str, reason: str) -> Json:
    """Promote through a canary and wait until it is live."""
    body = {"version": version, "strategy": "canary", "steps": steps, "min_samples": 20, "reason": reason, "actor": settings.actor}
    return _wait_live(control, control.promote(MODEL, body)["release"])


def roll_back(control: ControlClient, settings: Settings, *, reason: str) -> Json:
    """Roll back and wait until the earlier version is live."""
    return _wait_live(control, control.rollback(MODEL, {"reason": reason, "actor": settings.actor})["release"])


def _wait_live(control: ControlClient, release: Json) -> Json:
    release = control.wait(release, timeout_s=180.0)
    if release["status"] != "live":
        reasons = [str(event["data"].get("reason")) for event in release["events"] if event["kind"] == "aborted"]
        raise Refused(f"release {release['id']} is {release['status']}", f"See `modelway history {MODEL} --events`.", reasons=reasons)
    return release


def measure_accuracy(client: Client, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], say: Say) -> float:
    """Accuracy on all held-out digits, measured through the endpoint."""
    logits = client.infer(MODEL, images)
    assert isinstance(logits, np.ndarray)
    accuracy = float((logits.argmax(axis=1) == labels).mean())
    say(f"accuracy through the endpoint: {accuracy:.4f} on {len(labels)} held-out digits")
    return accuracy


def measure_latency(client: Client, images: np.ndarray[Any, Any], say: Say) -> Json:
    """Latency of one digit at a time, from the client's side."""
    latencies_ms = []
    for image in images[:200]:
        started = time.perf_counter()
        client.infer(MODEL, image[None])
        latencies_ms.append((time.perf_counter() - started) * 1000)
    median = statistics.median(latencies_ms)
    say(f"median latency of one digit: {median:.2f} ms over {len(latencies_ms)} requests, one at a time")
    return {"median_latency_ms": median}


def _payload(image: np.ndarray[Any, Any]) -> bytes:
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, *image.shape], "data": image.ravel().tolist()}
    return json.dumps({"inputs": [tensor]}).encode()


def report_load(load: OpenLoopLoad, promoted: Timed, rolled_back: Timed, say: Say) -> Json:
    """Say what the clients saw during promotion and rollback."""
    answers = sorted(load.answers, key=lambda answer: answer.sent_at)
    by_version = {version: sum(answer.version == version for answer in answers) for version in sorted({a.version for a in answers})}
    old, new = str(rolled_back.release["version"]), str(promoted.release["version"])
    latencies_ms = [answer.latency_s * 1000 for answer in answers]
    say(f"requests sent: {len(answers)} at {load.requests_per_s:g}/s, open loop; failed: {len(load.failed)}")
    say(f"answers by version: {', '.join(f'{MODEL}/{v or chr(63)}: {n}' for v, n in by_version.items())}")
    say(f"latency under load: p50 {_percentile(latencies_ms, 50):.1f} ms, p99 {_percentile(latencies_ms, 99):.1f} ms")
    say(f"promotion of {MODEL}/{new} ({CANARY_STEPS}): live {promoted.seconds:.2f} s after the command")
    say(_seen(answers, new, promoted, "first", f"first answer of {MODEL}/{new}"))
    say(_seen(answers, old, promoted, "last", f"last answer of {MODEL}/{old} before the rollback", until=rolled_back.given_at))
    say(f"rollback to {MODEL}/{old}: acknowledged {rolled_back.seconds:.3f} s after the command")
    say(_seen(answers, old, rolled_back, "first", f"first answer of {MODEL}/{old}"))
    say(_seen(answers, new, rolled_back, "last", f"last answer of {MODEL}/{new}"))
    late = [answer for answer in answers if answer.sent_at > rolled_back.acknowledged_at and answer.version == new]
    say(f"requests sent after the acknowledgement and answered by {MODEL}/{new}: {len(late)}")
    return {
        "sent": len(answers),
        "failed": len(load.failed),
        "by_version": by_version,
        "promotion_s": promoted.seconds,
        "rollback_s": rolled_back.seconds,
        "wrong_version_after_rollback": len(late),
    }


def _seen(answers: Sequence[Answer], version: str, command: Timed, which: str, what: str, *, until: float = float("inf")) -> str:
    times = [a.done_at - command.given_at for a in answers if a.version == version and command.given_at <= a.done_at < until]
    if not times:
        return f"  {what}: none"
    return f"  {what}: {(min(times) if which == 'first' else max(times)):.3f} s after the command"


def _percentile(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(values, percent)) if values else float("nan")
