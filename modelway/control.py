"""The control API as Python functions, with its errors turned back into ours. Imports nothing heavy."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from registry.errors import Conflict, Corrupt, ModelwayError, NotFound, Refused, TimedOut, Unavailable, UsageError

_POLL_S = 1.0
_ERRORS: Mapping[int, type[ModelwayError]] = {
    error.http_status: error for error in (UsageError, NotFound, Refused, TimedOut, Conflict, Unavailable, Corrupt)
}
_IN_PROGRESS = ("pending", "progressing")

Json = dict[str, Any]


class ControlClient:
    """One connection to the control API. Raises the error tree of `registry.errors`.

    Args:
        url: For example http://127.0.0.1:8085.
        timeout_s: Seconds for one call; a promotion fetches and packs the model within it.
    """

    def __init__(self, url: str, *, timeout_s: float = 120.0) -> None:
        self._url = url
        self._http = httpx.Client(base_url=url, timeout=httpx.Timeout(timeout_s, connect=5.0))

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def promote(self, model: str, body: Mapping[str, Any]) -> Json:
        """POST a promotion; the fields are those of `PromotionBody`. Returns `created`, `release` or `steps`."""
        return self._object("POST", f"/v1/models/{model}/releases", json=dict(body))

    def rollback(self, model: str, body: Mapping[str, Any]) -> Json:
        """POST a rollback; the fields are those of `RollbackBody`. Returns `created`, `release` or `steps`."""
        return self._object("POST", f"/v1/models/{model}/rollback", json=dict(body))

    def releases(self, model: str) -> list[Json]:
        """All releases of a model with their events, oldest first."""
        return list(self._call("GET", f"/v1/models/{model}/releases"))

    def status(self) -> Json:
        """Components, channels, and what is still to do."""
        return self._object("GET", "/v1/status")

    def verify(self) -> list[Json]:
        """Every check with its outcome."""
        return list(self._call("GET", "/v1/verify"))

    def ready(self) -> bool:
        """Whether the controller answers and has looked at the world."""
        try:
            return bool(self._object("GET", "/v1/health")["ready"])
        except ModelwayError:
            return False

    def wait(self, release: Json, timeout_s: float, on_change: Callable[[Json], None] = lambda _: None) -> Json:
        """Wait until the roll-out of a release has ended; its record then.

        Args:
            on_change: Called with the release each time it was looked at.

        Raises:
            TimedOut: It has not ended after `timeout_s`; it goes on.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = deadline - time.monotonic()
            path = f"/v1/models/{release['model']}/releases/{release['id']}"
            release = self._object("GET", path, params={"wait_s": max(0.0, min(_POLL_S, left_s))})
            on_change(release)
            if release["status"] not in _IN_PROGRESS:
                return release
            if left_s <= 0:
                raise TimedOut(
                    f"release {release['id']} of {release['model']} is {release['status']} after {timeout_s:g} s",
                    f"It goes on; watch it with `modelway status` or `modelway history {release['model']}`.",
                )

    def _object(self, method: str, path: str, **arguments: Any) -> Json:
        answer = self._call(method, path, **arguments)
        assert isinstance(answer, dict)
        return answer

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        try:
            response = self._http.request(method, path, **arguments)
        except httpx.TimeoutException as error:
            raise TimedOut(f"the control API does not answer in time ({self._url})", "Look at `modelway status`.") from error
        except httpx.TransportError as error:
            raise Unavailable(f"the platform is not running ({self._url}: {error})", "Start it with `modelway up`.") from error
        if response.is_success:
            return response.json()
        raise _error_of(response)


def _error_of(response: httpx.Response) -> ModelwayError:
    try:
        body = response.json()
        what, next_step = str(body["error"]), str(body.get("next_step", ""))
    except (ValueError, KeyError, TypeError):
        return Unavailable(f"not a control API ({response.url}: HTTP {response.status_code})", "Check MODELWAY_CONTROL_URL.")
    return _ERRORS.get(response.status_code, ModelwayError)(what, next_step)
