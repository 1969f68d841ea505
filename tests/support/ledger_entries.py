"""Drafts and events for tests of ledgers."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from registry.release import Event, EventKind, ReleaseDraft
from support.worlds import NOW, release


def draft(version: int = 1, **changes: Any) -> ReleaseDraft:
    """A draft for `digits` in production; `changes` replaces fields."""
    made = release(1, version, **{key: value for key, value in changes.items() if key == "model"})
    plain = ReleaseDraft(**{field.name: getattr(made, field.name) for field in fields(ReleaseDraft)})
    return replace(plain, **changes)


def note(release_id: int = 1, **data: Any) -> Event:
    """An event that says nothing of importance."""
    return Event(release_id=release_id, kind=EventKind.HELD, at=NOW, data=data)
