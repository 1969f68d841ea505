"""P23: the chain detects any edit, removal, insertion and reordering."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.bundle import canonical_json
from registry.errors import Corrupt
from registry.ledger_chain import EMPTY, GENESIS, Head, LedgerRow, entry_hash, head_after, make_row, verify_chain
from registry.release import Event, Release
from support.ledger_entries import note
from support.worlds import release

ENTRIES: tuple[Release | Event, ...] = (
    release(1, 1),
    note(1, n=1),
    note(1, n=2),
    release(2, 2, replaces=1, reason="a reason"),
    note(2, n=1),
    release(3, 3, channel="staging"),
    note(1, n=3),
)


def chain(entries: tuple[Release | Event, ...] = ENTRIES) -> tuple[list[LedgerRow], Head]:
    rows: list[LedgerRow] = []
    head = EMPTY
    for entry in entries:
        rows.append(make_row(entry, head))
        head = head_after(rows[-1])
    return rows, head


ROWS, HEAD = chain()
untimed = settings(deadline=None)  # a busy machine is no failure


def rehashed(row: LedgerRow, **changes: Any) -> LedgerRow:
    """The row with changes and a hash that fits them."""
    row = replace(row, **changes)
    return replace(row, hash=entry_hash(row.seq, row.at, row.kind, row.body, row.prev_hash))


def test_the_docstring_s_example() -> None:
    first, second, *_ = ROWS
    assert first.prev_hash == GENESIS
    assert second.prev_hash == first.hash
    assert second.hash == entry_hash(2, second.at, "held", second.body, first.hash)
    assert head_after(second) == Head(num_entries=2, hash=second.hash)


def test_the_hash_stays_what_it_is() -> None:
    # A ledger that was written by an earlier release of Modelway must verify for ever.
    assert GENESIS == "bd93c52a68ced6658c8963438493f8eec795a4d512fa0f8a655b6da602c4f9cf"
    assert (
        entry_hash(1, "2026-01-01T00:00:00+00:00", "live", '{"ä":1}', GENESIS)
        == "3005b1aa4ee7012d0e0c7bb2bfb624b3b5dfc7d21b05cc6d77a7f663b22c3096"
    )


def test_an_untouched_chain_verifies() -> None:
    assert verify_chain(ROWS, head=HEAD) == list(ENTRIES)
    assert verify_chain([], head=EMPTY) == []
    assert verify_chain(ROWS[3:], start=(3, ROWS[2].hash), head=HEAD) == list(ENTRIES[3:])


ROW = st.integers(0, len(ROWS) - 1)


@untimed
@given(ROW, st.sampled_from([field.name for field in fields(LedgerRow)]), st.data())
def test_p23_any_edit_of_any_column_is_found(index: int, column: str, data: st.DataObject) -> None:
    old = getattr(ROWS[index], column)
    values = (
        st.integers(-2, 12) if column in ("seq", "release_id", "replaces") else st.text(max_size=70) | st.none() | st.binary(max_size=3)
    )
    new = data.draw(values.filter(lambda value: value != old))
    rows = [*ROWS[:index], replace(ROWS[index], **{column: new}), *ROWS[index + 1 :]]
    with pytest.raises(Corrupt, match=rf"entry ({index + 1}|{index + 2}) "):
        verify_chain(rows, head=HEAD)


@untimed
@given(ROW, st.data())
def test_p23_one_changed_character_of_a_body_is_found(index: int, data: st.DataObject) -> None:
    body = ROWS[index].body
    at = data.draw(st.integers(0, len(body) - 1))
    character = data.draw(st.characters(codec="utf-8").filter(lambda c: c != body[at]))
    rows = [*ROWS[:index], replace(ROWS[index], body=body[:at] + character + body[at + 1 :]), *ROWS[index + 1 :]]
    with pytest.raises(Corrupt, match=f"entry {index + 1} was changed"):
        verify_chain(rows, head=HEAD)


@untimed
@given(ROW)
def test_p23_an_edit_with_a_hash_that_fits_breaks_the_next_link(index: int) -> None:
    body = canonical_json({**json.loads(ROWS[index].body), "extra": 1}) if ROWS[index].kind != "release" else None
    forged = rehashed(ROWS[index], body=body) if body is not None else rehashed(ROWS[index], at="2030-01-01T00:00:00+00:00")
    rows = [*ROWS[:index], forged, *ROWS[index + 1 :]]
    with pytest.raises(Corrupt, match=rf"entry {min(index + 2, len(ROWS))} "):
        verify_chain(rows, head=HEAD)


@untimed
@given(st.sets(ROW, min_size=1))
def test_p23_any_removal_is_found_the_tail_s_included(removed: set[int]) -> None:
    rows = [row for index, row in enumerate(ROWS) if index not in removed]
    with pytest.raises(Corrupt, match=f"entry {min(removed) + 1} is missing"):
        verify_chain(rows, head=HEAD)


@untimed
@given(ROW, ROW.map(lambda index: ROWS[index]))
def test_p23_any_insertion_is_found(index: int, inserted: LedgerRow) -> None:
    rows = [*ROWS[:index], inserted, *ROWS[index:]]
    with pytest.raises(Corrupt):
        verify_chain(rows, head=HEAD)


def test_p23_an_insertion_of_a_fitting_row_breaks_the_next_link() -> None:
    forged = make_row(note(1, forged=True), Head(num_entries=2, hash=ROWS[1].hash))
    with pytest.raises(Corrupt, match="entry 4 is not where it belongs"):
        verify_chain([*ROWS[:2], forged, *ROWS[2:]], head=HEAD)
    renumbered = [replace(row, seq=row.seq + 1) for row in ROWS[2:]]
    with pytest.raises(Corrupt, match="entry 4 does not follow the one before"):
        verify_chain([*ROWS[:2], forged, *renumbered], head=HEAD)


def test_p23_an_appended_row_is_not_the_head_s() -> None:
    with pytest.raises(Corrupt, match="entry 8 is not the one that its head names"):
        verify_chain([*ROWS, make_row(note(1, forged=True), HEAD)], head=HEAD)


@untimed
@given(st.permutations(range(len(ROWS))).filter(lambda order: order != sorted(order)), st.booleans())
def test_p23_any_reordering_is_found(order: list[int], renumber: bool) -> None:
    rows = [replace(ROWS[index], seq=seq) if renumber else ROWS[index] for seq, index in enumerate(order, start=1)]
    with pytest.raises(Corrupt):
        verify_chain(rows, head=HEAD)


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(replace(HEAD, num_entries=len(ROWS) - 1), id="fewer"),
        pytest.param(replace(HEAD, num_entries=len(ROWS) + 1), id="more"),
        pytest.param(replace(HEAD, hash=ROWS[0].hash), id="hash"),
        pytest.param(EMPTY, id="empty"),
    ],
)
def test_p23_an_edited_head_is_found(head: Head) -> None:
    with pytest.raises(Corrupt, match="head"):
        verify_chain(ROWS, head=head)


def unknown_kind(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "kind": "exploded"}


def no_kind(body: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != "kind"}


@pytest.mark.parametrize("change", [unknown_kind, no_kind])
def test_an_entry_of_another_modelway_is_named(change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    row = make_row(note(1), EMPTY)
    strange = rehashed(row, body=canonical_json(change(json.loads(row.body))))
    with pytest.raises(Corrupt, match=r"entry 1 cannot be read .*another release of Modelway"):
        verify_chain([strange])
