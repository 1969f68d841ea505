"""The error tree of Modelway. Every error that a user can meet derives from one base.

ModelwayError
├── UsageError     the caller's input is wrong                          exit 2, HTTP 400
├── NotFound       a model, version, variant or release does not exist  exit 1, HTTP 404
├── Refused        a gate or a verdict said no; carries the reasons     exit 3, HTTP 422
├── TimedOut       the deadline passed; the work may still go on        exit 4, HTTP 504
├── Conflict       somebody else changed it first                       exit 5, HTTP 409
├── Unavailable    a component does not answer                          exit 1, HTTP 503
└── Corrupt        a digest, a hash chain or a stored file is wrong     exit 1, HTTP 500

The message of an error reads `<what> (<value>). <next step>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class ModelwayError(Exception):
    """Base of all errors that Modelway raises on purpose.

    Args:
        what: One clause that says what is wrong, with the offending value in it.
        next_step: One sentence that says what the user can do now.
    """

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(self, what: str, next_step: str = "") -> None:
        self.what = what.rstrip(".")
        self.next_step = next_step
        super().__init__(f"{self.what}. {next_step}".rstrip())


class UsageError(ModelwayError):
    """The caller's input is wrong."""

    exit_code = 2
    http_status = 400


class NotFound(ModelwayError):
    """A model, version, variant, release or file does not exist."""

    http_status = 404


class Refused(ModelwayError):
    """A gate or a verdict refused; `reasons` says why, with numbers."""

    exit_code = 3
    http_status = 422

    def __init__(self, what: str, next_step: str = "", *, reasons: Sequence[str] = ()) -> None:
        self.reasons = tuple(reasons)
        super().__init__(": ".join([what.rstrip("."), "; ".join(reasons)]) if reasons else what, next_step)


class TimedOut(ModelwayError):
    """The deadline passed before the work was done; the work may still go on."""

    exit_code = 4
    http_status = 504


class Conflict(ModelwayError):
    """The state is not the one that the caller expected to change."""

    exit_code = 5
    http_status = 409


class Unavailable(ModelwayError):
    """A component that is needed does not answer."""

    http_status = 503


class Corrupt(ModelwayError):
    """A digest, a hash chain or a stored file is not what it must be."""
