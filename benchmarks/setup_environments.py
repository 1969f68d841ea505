"""The rivals' own environments: one virtual environment for each file of `benchmarks/environments`, outside git.

    python -m benchmarks.setup_environments [NAME ...]      (make bench-setup)

The files pin everything, and nothing is resolved, so that what was measured can be measured again.
`MODELWAY_BENCH_CACHE` names the folder; by default it is `.bench` in the repository. A second run does nothing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from registry.errors import NotFound, Unavailable

_FILES = Path(__file__).parent / "environments"
_STAMP = ".installed"


def cache_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """Where environments and exported models are kept between runs."""
    named = environ.get("MODELWAY_BENCH_CACHE")
    return Path(named).absolute() if named else Path(__file__).parent.parent / ".bench"


def names() -> list[str]:
    """All environments."""
    return sorted(path.stem for path in _FILES.glob("*.txt"))


def is_built(name: str) -> bool:
    """Whether the environment is there, and is what its file says; the nameless one is this interpreter's own."""
    if not name:
        return True
    stamp = cache_directory() / name / _STAMP
    return stamp.is_file() and stamp.read_text() == _digest(name)


def python_of(name: str) -> Path:
    """The environment's interpreter. Raises NotFound."""
    if not name:
        return Path(sys.executable)
    if not is_built(name):
        raise NotFound(f"the environment is not built ({name})", "Run `make bench-setup`.")
    return cache_directory() / name / "bin" / "python"


def build(name: str) -> None:
    """Build it anew. Raises NotFound, Unavailable."""
    if name not in names():
        raise NotFound(f"no such environment ({name})", f"There are {', '.join(names())}.")
    directory = cache_directory() / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.parent.mkdir(parents=True, exist_ok=True)
    python = directory / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r", str(_FILES / f"{name}.txt")]
    for argv in ([sys.executable, "-m", "venv", str(directory)], pip):
        done = subprocess.run(argv, check=False)
        if done.returncode != 0:
            raise Unavailable(f"the environment could not be built ({name})", "pip's words are above.")
    (directory / _STAMP).write_text(_digest(name))


def _digest(name: str) -> str:
    content = (_FILES / f"{name}.txt").read_bytes()
    return hashlib.sha256(content + sys.version.encode()).hexdigest()


def main(argv: Sequence[str]) -> int:
    """Build those named, or all; 1 if one could not be built."""
    failed = []
    for name in argv or names():
        if is_built(name):
            print(f"{name}: already built", file=sys.stderr)
            continue
        print(f"{name}: building in {cache_directory() / name}", file=sys.stderr)
        try:
            build(name)
        except (NotFound, Unavailable) as error:
            print(f"Error: {error}", file=sys.stderr)
            failed.append(name)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
