"""What can go wrong in a worker, in two kinds: a request's own fault, and an archive that must not serve."""

from __future__ import annotations


class RequestError(Exception):
    """One request cannot be answered. The others of its batch can.

    Args:
        status: HTTP status, 4xx for the caller's fault, 5xx for the model's.
        message: Names what is wrong, what was expected and what was got; never repeats the request's data.
    """

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        self.message = message
        super().__init__(message)


class LoadError(Exception):
    """The archive must not serve; the message is one line that says why."""
