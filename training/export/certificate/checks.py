"""The forms that nearly every check of a certificate has."""

from __future__ import annotations

from math import inf

from registry.certificate import Check

_MAX_CHARACTERS = 300


def runs(name: str, error: Exception | None = None) -> Check:
    """Passes if nothing was raised; otherwise says what."""
    detail = "" if error is None else f"{type(error).__name__}: {' '.join(str(error).split())[:_MAX_CHARACTERS]}"
    return Check(name=name, passed=error is None, value=float(error is None), limit=1, relation="==", detail=detail)


def at_most(name: str, value: float, limit: float, detail: str = "") -> Check:
    """Passes if the value is within the limit; NaN is not."""
    return Check(name=name, passed=bool(value <= limit), value=value, limit=limit, detail=detail)


def could_not_run(name: str, error: Exception, limit: float) -> Check:
    """An error that could not be measured, for what the runtime raised: infinite."""
    return Check(name=name, passed=False, value=inf, limit=limit, detail=runs(name, error).detail)
