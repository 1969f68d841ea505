"""Serve an unpacked archive by its own socket alone, without an engine around it.

    python -m serving.runtime.modelway_runtime.serve --archive DIR --socket PATH [--threads N] [--batch-size N]

For measurements, and for whoever wants a model on a socket and nothing else. Ends on SIGTERM or SIGINT, or when the
process that started it closes its stdin (with `--until-eof`). Prints one line, `ready`, when it answers.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from . import files, worker
from .errors import LoadError
from .listener import Listener, limits_from_environment


def main(argv: Sequence[str]) -> int:
    """Load, serve until told to end; 1 if the archive must not be served."""
    parser = argparse.ArgumentParser(prog="serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, required=True, help="directory of the unpacked archive")
    parser.add_argument("--socket", type=Path, required=True, help="Unix socket to listen on")
    parser.add_argument("--threads", type=int, default=0, help="threads of one run, instead of what the archive says")
    parser.add_argument("--batch-size", type=int, default=0, help="requests that run together, instead of what the archive says")
    parser.add_argument("--until-eof", action="store_true", help="end when stdin is closed")
    arguments = parser.parse_args(argv)
    try:
        engine_version = files.engine_version(arguments.archive)
        core = worker.load(arguments.archive, engine_version, num_threads=arguments.threads or None)
    except LoadError as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    model = str(json.loads((arguments.archive / files.MANIFEST).read_text())["model"])
    batch_size = arguments.batch_size or files.options(arguments.archive).get("batch_size", 0)
    listener = Listener(core, arguments.socket, model, engine_version, limits_from_environment(batch_size=batch_size))
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    if arguments.until_eof:
        threading.Thread(target=_set_at_eof, args=(ended,), daemon=True).start()
    listener.start()
    print("ready", flush=True)  # noqa: T201
    ended.wait()
    listener.close()
    return 0


def _set_at_eof(ended: threading.Event) -> None:
    sys.stdin.read()
    ended.set()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
