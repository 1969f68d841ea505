"""The error tree: message, exit code and HTTP status of each."""

from __future__ import annotations

import pytest

from registry.errors import Conflict, Corrupt, ModelwayError, NotFound, Refused, TimedOut, Unavailable, UsageError

CODES = [
    (UsageError, 2, 400),
    (NotFound, 1, 404),
    (Refused, 3, 422),
    (TimedOut, 4, 504),
    (Conflict, 5, 409),
    (Unavailable, 1, 503),
    (Corrupt, 1, 500),
]


@pytest.mark.parametrize(("error", "exit_code", "http_status"), CODES)
def test_codes(error: type[ModelwayError], exit_code: int, http_status: int):
    assert (error.exit_code, error.http_status) == (exit_code, http_status)


def test_every_error_is_in_the_table():
    ours = {error for error in ModelwayError.__subclasses__() if error.__module__ == ModelwayError.__module__}
    assert {error for error, _, _ in CODES} == ours


def test_a_message_says_what_and_what_next():
    assert str(NotFound("no model iris.", "Train it.")) == "no model iris. Train it."
    assert str(NotFound("no model iris")) == "no model iris."
    refused = Refused("digits/2 may not go live", "Train again.", reasons=["a 2 > 1", "b 3 > 1"])
    assert str(refused) == "digits/2 may not go live: a 2 > 1; b 3 > 1. Train again."
    assert refused.reasons == ("a 2 > 1", "b 3 > 1")
