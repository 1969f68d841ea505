"""API keys: what a key is, the file that they are kept in, and a view of it that follows the file.

    # api-keys.toml, mode 0600
    [keys.scanner]
    sha1 = "W6ph5Mm5Pz8GgiULbPgzG37mj9g="
    requests_per_s = 200       # optional; burst too
    models = ["digits"]        # optional; all models without it

A client sends base64("name:secret") as one opaque word. The secret is 256 random bits, so its digest gives nothing
away, SHA-1 or not: there is no dictionary to try. SHA-1 because that is the digest which the gateway can check by
itself (docs/adr/0006-api-keys.md). The file holds digests only; a key is shown once, when it is made.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import math
import re
import secrets
import stat
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.bundle import write_durably
from registry.errors import Conflict, NotFound, Unavailable, UsageError
from registry.names import check_model_name

log = logging.getLogger(__name__)

MAX_KEYS = 1000  # names are labels of metrics, and every key is in the gateway's routes
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_SHA1_BYTES = 20
_SECRET_CHARS = 43  # of 62: 256 bits
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_MAX_RATE = 1_000_000
_FIELDS = {"sha1", "requests_per_s", "burst", "models"}
_HEAD = "# API keys of the gateway: digests, never the keys themselves. `modelway keys` maintains this file.\n"
_OPEN_TO_OTHERS = stat.S_IRWXO | stat.S_IWGRP


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """One key, without its secret.

    Attributes:
        name: Whose it is; appears in the access log and in metrics.
        sha1: Base64 of the SHA-1 of the secret.
        requests_per_s: Requests that it may send per second on average; None for no limit.
        burst: Requests that it may send at once after a pause.
        models: Models that it may ask; None for all.
    """

    name: str
    sha1: str
    requests_per_s: float | None = None
    burst: int = 1
    models: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        if _decoded(self.sha1) != _SHA1_BYTES:
            raise UsageError(f"the digest of the API key {self.name} is no base64 of a SHA-1", "Make the key with `modelway keys add`.")
        rate = self.requests_per_s
        if rate is not None and not 0.001 <= rate <= _MAX_RATE:
            raise UsageError(f"invalid requests_per_s of the API key {self.name} ({rate})", f"Use a number from 0.001 to {_MAX_RATE}.")
        if not 1 <= self.burst <= _MAX_RATE:
            raise UsageError(f"invalid burst of the API key {self.name} ({self.burst})", f"Use a whole number from 1 to {_MAX_RATE}.")
        for model in self.models or ():
            check_model_name(model)


def _decoded(text: str) -> int:
    try:
        return len(base64.b64decode(text, validate=True))
    except ValueError:
        return -1


def check_name(name: str) -> str:
    """Return `name` if it can name a key, else raise UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"invalid name of an API key ({name[:80]!r})",
            "Use lower-case letters, digits, '-' and '_', at most 63, starting with one of the first two.",
        )
    return name


def new_key(
    name: str, *, requests_per_s: float | None = None, burst: int | None = None, models: tuple[str, ...] | None = None
) -> tuple[ApiKey, str]:
    """A fresh key and the word that its client sends. The word is nowhere else."""
    check_name(name)
    # Such a length that the word needs no '=' at its end; of these characters base64 makes letters and digits only.
    length = _SECRET_CHARS + -(len(name) + 1 + _SECRET_CHARS) % 3
    secret = "".join(secrets.choice(_ALPHABET) for _ in range(length))
    digest = base64.b64encode(hashlib.sha1(secret.encode(), usedforsecurity=False).digest()).decode()
    key = ApiKey(name=name, sha1=digest, requests_per_s=requests_per_s, burst=burst or default_burst(requests_per_s), models=models)
    return key, base64.b64encode(f"{name}:{secret}".encode()).decode()


def default_burst(requests_per_s: float | None) -> int:
    """What one second allows, and at least one request."""
    return max(1, math.ceil(requests_per_s)) if requests_per_s is not None and math.isfinite(requests_per_s) else 1


# --- the file


def parse(text: str, where: str) -> tuple[ApiKey, ...]:
    """The keys of a file's text, by name. Raises UsageError, which names the key and never its digest."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the API keys are not TOML ({where}: {error})", "Correct that line.") from None
    tables = document.get("keys", {})
    unknown = sorted(document.keys() - {"keys"})
    if unknown or not isinstance(tables, dict):
        raise UsageError(f"the API keys have something that is no key ({where}: {unknown or 'keys'})", "Write [keys.NAME] tables only.")
    if len(tables) > MAX_KEYS:
        raise UsageError(f"too many API keys ({where}: {len(tables)})", f"At most {MAX_KEYS} are possible.")
    return tuple(_key(name, tables[name], where) for name in sorted(tables))


def _key(name: str, table: Any, where: str) -> ApiKey:
    check_name(name)
    if not isinstance(table, dict) or not isinstance(table.get("sha1"), str) or table.keys() - _FIELDS:
        fields = ", ".join(sorted(_FIELDS))
        raise UsageError(f"the API key {name} is not a table with sha1 and only known fields ({where})", f"Known are {fields}.")
    rate, burst, models = table.get("requests_per_s"), table.get("burst"), table.get("models")
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float)):
        raise UsageError(f"requests_per_s of the API key {name} is not a number ({where})", "Write, for example, requests_per_s = 100.")
    if burst is not None and (isinstance(burst, bool) or not isinstance(burst, int)):
        raise UsageError(f"burst of the API key {name} is not a whole number ({where})", "Write, for example, burst = 200.")
    if models is not None and not (isinstance(models, list) and all(isinstance(model, str) for model in models)):
        raise UsageError(f"models of the API key {name} is not a list of names ({where})", 'Write, for example, models = ["digits"].')
    return ApiKey(
        name=name,
        sha1=table["sha1"],
        requests_per_s=rate,
        burst=default_burst(rate) if burst is None else burst,
        models=None if models is None else tuple(models),
    )


def table_text(key: ApiKey) -> str:
    """The key as a TOML table."""
    lines = [f"[keys.{key.name}]", f'sha1 = "{key.sha1}"']
    if key.requests_per_s is not None:
        lines += [f"requests_per_s = {key.requests_per_s!r}", f"burst = {key.burst}"]
    if key.models is not None:
        quoted = ", ".join(json.dumps(model) for model in key.models)
        lines.append(f"models = [{quoted}]")
    return "\n".join(lines) + "\n"


def without_table(text: str, name: str) -> str:
    """The text without the key's table; comments and other tables stay as they are."""
    kept, inside = [], False
    for line in text.splitlines(keepends=True):
        if line.lstrip().startswith("["):
            inside = re.fullmatch(rf"""\[\s*keys\s*\.\s*["']?{re.escape(name)}["']?\s*\]\s*(#.*)?""", line.strip()) is not None
        if not inside or line.lstrip().startswith("#"):
            kept.append(line)
    return "".join(kept)


class KeyFile:
    """The file of API keys. `current` follows it; `add` and `remove` change it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._keys: tuple[ApiKey, ...] | None = None
        self._stamp: tuple[int, int, int] | None = None
        self._problem = ""

    def read(self) -> tuple[ApiKey, ...]:
        """The keys in the file now. Raises UsageError: it is missing, unreadable, open to others, or not well-formed."""
        return parse(self._text(), str(self.path))

    def _text(self) -> str:
        try:
            mode = self.path.stat().st_mode
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UsageError(f"there is no file of API keys ({self.path})", "Make the first key with `modelway keys add NAME`.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read the API keys ({self.path}: {error})", "Make it readable to this user only.") from None
        if mode & _OPEN_TO_OTHERS:
            raise UsageError(f"the API keys are open to others ({self.path}, mode {stat.S_IMODE(mode):04o})", f"Run: chmod 600 {self.path}")
        return text

    def current(self) -> tuple[ApiKey, ...]:
        """The keys to enforce now: the file's, or the last good ones where somebody broke it meanwhile (said once in the log).

        Raises:
            UsageError: The file was never good.
        """
        try:
            status = self.path.stat()
            stamp = (status.st_ctime_ns, status.st_size, status.st_ino)  # ctime: of the mode too
        except OSError:
            stamp = None
        if self._keys is not None and stamp is not None and stamp == self._stamp:
            return self._keys
        try:
            self._keys = self.read()
            self._stamp, self._problem = stamp, ""
        except UsageError as error:
            if self._keys is None:
                raise
            if str(error) != self._problem:
                self._problem = str(error)
                log.error("the API keys stay as they were: %s", error)
        return self._keys

    def add(self, key: ApiKey) -> None:
        """Append a key; makes the file, for this user only. Raises Conflict if the name is taken, UsageError, Unavailable."""
        text = self._text() if self.path.exists() else _HEAD
        if any(known.name == key.name for known in parse(text, str(self.path))):
            raise Conflict(f"there is an API key of that name already ({key.name})", f"Remove it first: modelway keys remove {key.name}")
        text = f"{text.rstrip()}\n\n{table_text(key)}"
        parse(text, str(self.path))
        self._write(text)

    def remove(self, name: str) -> None:
        """Take a key away. Raises NotFound, UsageError, Unavailable."""
        text = self._text()
        known = [key.name for key in parse(text, str(self.path))]
        if name not in known:
            raise NotFound(f"there is no such API key ({name})", f"There are: {', '.join(known) or 'none'}.")
        shorter = without_table(text, name)
        if [key.name for key in parse(shorter, str(self.path))] != [other for other in known if other != name]:
            raise UsageError(f"the API key {name} is not a table of its own ({self.path})", "Remove it with an editor.")
        self._write(shorter)

    def _write(self, text: str) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(self.path, text.encode(), mode=0o600)
        except OSError as error:
            raise Unavailable(f"cannot write the API keys ({self.path}: {error.strerror})", "Make the directory writable.") from error
