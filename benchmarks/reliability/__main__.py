"""`make reliability`: the promises P17 to P21 and P24 on the real platform, in full; writes docs/reliability.md.

python -m benchmarks.reliability            takes about half an hour
python -m benchmarks.reliability --quick    a smoke run of a few minutes; writes nothing unless --output names a file
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import machine
from benchmarks.reliability import batches, exposure, hostile, overload, platform, slow_clients
from benchmarks.reliability.proof import Proof, Subject
from benchmarks.reliability.report import render

_DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "reliability.md"


_SHORT = {"gateway_header_timeout_s": 6.0, "gateway_receive_timeout_s": 6.0}
_DEFAULTS = {"gateway_header_timeout_s": 10.0, "gateway_receive_timeout_s": 60.0}


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is tried."""

    num_cases: int
    num_batches: int
    every_path: int
    num_slow_clients: int
    load_s: float
    num_rounds: int


FULL = Effort(num_cases=100_000, num_batches=1000, every_path=1, num_slow_clients=1000, load_s=15.0, num_rounds=7)
QUICK = Effort(num_cases=1_000, num_batches=20, every_path=20, num_slow_clients=100, load_s=4.0, num_rounds=1)


def main(argv: Sequence[str]) -> int:
    """Prove, print, write; 1 if a promise does not hold."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reliability", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    parser.add_argument("--only", action="append", choices=[*_PROOFS], help="only this promise; may be repeated")
    parser.add_argument("--output", type=Path, help="where the document goes; by default docs/reliability.md")
    arguments = parser.parse_args(argv)
    effort = QUICK if arguments.quick else FULL
    output = arguments.output or (None if arguments.quick or arguments.only else _DOCUMENT)
    directory = Path(tempfile.mkdtemp(prefix="modelway-reliability-"))
    facts = machine.describe()
    _say("starting the platform")
    wanted = [name for name in _PROOFS if name in (arguments.only or _PROOFS)]
    proofs: list[Proof] = []
    # One platform with short timeouts, where hostile input need not be waited for; one with the defaults for slow clients.
    for timeouts, names in ((_SHORT, [name for name in wanted if name != "P21"]), (_DEFAULTS, [name for name in wanted if name == "P21"])):
        if names:
            home = directory / ("slow" if timeouts is _DEFAULTS else "all")
            home.mkdir()
            with platform.running(home, slow_iterations=16_000, **timeouts) as subject:
                proofs += [proof for name in names for proof in _prove(name, subject, effort)]
    proofs.sort(key=lambda proof: proof.promise)
    command = "python -m benchmarks.reliability" + (" --quick" if arguments.quick else "")
    document = render(proofs, facts, command=command, date=datetime.now(UTC).strftime("%Y-%m-%d"), quick=arguments.quick)
    print(document)
    if output is not None:
        output.write_text(document)
        _say(f"written to {output}")
    broken = [proof for proof in proofs if not proof.holds]
    for proof in broken:
        for problem in proof.problems:
            _say(f"Error: {proof.promise}: {problem}")
    if broken:
        _say(f"The logs are in {directory}.")
        return 1
    shutil.rmtree(directory)
    return 0


def _prove(name: str, subject: Subject, effort: Effort) -> Iterator[Proof]:
    for prove in _PROOFS[name]:
        proof = prove(subject, effort)
        _say(f"{proof.promise} {proof.title}: {'holds' if proof.holds else 'DOES NOT HOLD'}")
        yield proof


def _batches(subject: Subject, effort: Effort) -> Proof:
    rows, expected = platform.expected_answers(64)
    return batches.run(subject, expected, rows, effort.num_batches)


_PROOFS: dict[str, Sequence[Callable[[Subject, Effort], Proof]]] = {
    "P17": (
        lambda subject, effort: exposure.sockets(subject),
        lambda subject, effort: exposure.paths(subject, effort.every_path, _say),
    ),
    "P18": (lambda subject, effort: hostile.run(subject, effort.num_cases, _say),),
    "P19": (_batches,),
    "P20": (lambda subject, effort: overload.run(subject, effort.load_s, _say),),
    "P21": (lambda subject, effort: slow_clients.run(subject, effort.num_slow_clients, effort.load_s, effort.num_rounds, _say),),
    "P24": (lambda subject, effort: exposure.secrets(subject),),
}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
