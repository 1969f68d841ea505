"""What every ledger says when it refuses, so that adapters and fakes say the same."""

from __future__ import annotations

from registry.errors import Conflict, Corrupt, NotFound
from registry.release import Release, ReleaseDraft


def release_conflict(draft: ReleaseDraft, expect: int | None, newest: Release | None) -> Conflict:
    """Somebody else released first: names the winner, by whom and when."""
    wanted = f"expected {'none' if expect is None else f'release {expect}'}"
    if newest is None:
        what = f"{draft.channel} of {draft.model} has no release ({wanted})"
    else:
        when = newest.created_at.isoformat(timespec="seconds")
        what = f"release {newest.id} ({newest.model_version}, by {newest.actor} at {when}) is the newest in {newest.channel} ({wanted})"
    return Conflict(what, f"Look at `modelway history {draft.model}` and decide again.")


def unknown_release(release_id: int, num_releases: int) -> NotFound:
    """An event of a release that does not exist."""
    known = f"releases are 1 to {num_releases}" if num_releases else "there is no release yet"
    return NotFound(f"no release {release_id} in the ledger ({known})")


def ends_before(after: int, num_entries: int) -> Corrupt:
    """The ledger is shorter than it was when somebody read it last."""
    return Corrupt(
        f"the ledger ends at entry {num_entries}, but entry {after} was read before",
        "Entries were removed: restore the ledger from a backup.",
    )
