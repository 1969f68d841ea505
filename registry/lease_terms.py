"""The rules of the controller's lease, as pure functions of the lease as it is and of the time.

One holder at a time, and a fencing token that rises with every grant. The token is what protects: a paused holder that
wakes up late believes that it still holds the lease, but the ledger refuses what it writes under an older token.

    grant(None, "a", 10, t)                    token 1 until t + 10
    grant(<a, 1, t + 10>, "b", 10, t + 5)      None: a holds it
    grant(<a, 1, t + 10>, "b", 10, t + 10)     token 2 for b; from here on a's token 1 is stale
    grant(<b, 2, t + 20>, "b", 10, t + 11)     token 3: b was started anew, and what is left of its former self is fenced off
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from registry.errors import Conflict

NOBODY = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseGrant:
    """The lease as it stands.

    Attributes:
        holder: Who has it; empty when it was given up.
        token: Its fencing token, counting from 1; survives the holder, so that it only ever rises.
        expires_at: From then on others may have it.
    """

    holder: str
    token: int
    expires_at: datetime


def grant(current: LeaseGrant | None, holder: str, ttl_s: float, now: datetime) -> LeaseGrant | None:
    """The lease that `holder` gets now; None if somebody else holds it."""
    assert holder, "a lease needs a holder's name"
    if current is not None and current.holder not in (NOBODY, holder) and now < current.expires_at:
        return None
    return LeaseGrant(holder=holder, token=current.token + 1 if current is not None else 1, expires_at=now + timedelta(seconds=ttl_s))


def renewed(current: LeaseGrant | None, token: int, ttl_s: float, now: datetime) -> LeaseGrant:
    """The lease of `token`, with a new end. Raises Conflict if it was lost or given up."""
    check_fence(current, token)
    assert current is not None
    return replace(current, expires_at=now + timedelta(seconds=ttl_s))


def given_up(current: LeaseGrant | None, token: int) -> LeaseGrant | None:
    """The lease after the holder of `token` gave it up; as it was if it had lost it before."""
    return replace(current, holder=NOBODY) if current is not None and current.token == token else current


def check_fence(current: LeaseGrant | None, token: int) -> None:
    """Raise Conflict unless `token` is that of the present holder."""
    if current is None or current.token != token or current.holder == NOBODY:
        now = f"{current.holder} holds token {current.token}" if current is not None and current.holder else "nobody holds it"
        raise Conflict(f"the controller's lease was lost (token {token}; {now})", "Only one controller may act: this one must stop.")
