"""What is done about aliases, as a table."""

from __future__ import annotations

import pytest

from registry.names import ModelVersion
from registry.release import EventKind
from serving.aliases import ACTOR, NoteAlias, RequestedByAlias, SetAlias, plan_aliases
from support.worlds import event, ledger, live, release

ONE, TWO = ModelVersion("digits", 1), ModelVersion("digits", 2)
LIVE_1 = (release(1, 1), live(1))
NOTED_1 = (*LIVE_1, event(1, EventKind.ALIAS_SET))
PUT_ONE = SetAlias(release_id=1, version=ONE, channel="production")


def decided(alias, *entries):
    return plan_aliases(ledger(*entries), {"digits": {} if alias is None else {"production": alias}})


@pytest.mark.parametrize(
    ("alias", "entries", "action"),
    [
        pytest.param(None, (release(1, 1),), None, id="nothing is live yet"),
        pytest.param(None, LIVE_1, PUT_ONE, id="a release got live"),
        pytest.param(7, LIVE_1, PUT_ONE, id="a release got live, the alias is behind"),
        pytest.param(1, LIVE_1, NoteAlias(release_id=1), id="set, and the controller died before it said so"),
        pytest.param(1, NOTED_1, None, id="as it should be"),
        pytest.param(None, NOTED_1, PUT_ONE, id="deleted by hand"),
        pytest.param(2, NOTED_1, RequestedByAlias(version=TWO, channel="production", expect=1), id="moved by hand"),
        pytest.param(2, (*NOTED_1, release(2, 2, actor=ACTOR)), None, id="moved by hand, and its release is on its way"),
    ],
)
def test_aliases(alias, entries, action):
    assert decided(alias, *entries) == ((action,) if action else ())


def test_an_alias_whose_release_was_aborted_is_put_back_with_the_reason():
    aborted = (release(2, 2, actor=ACTOR), event(2, EventKind.ABORTED, reason="error ratio 0.4 > 0.01"))
    assert decided(2, *NOTED_1, *aborted) == (SetAlias(release_id=1, version=ONE, channel="production", because="error ratio 0.4 > 0.01"),)


def test_an_alias_moved_after_somebody_elses_release_was_aborted_is_a_request():
    aborted = (release(2, 2, actor="alice"), event(2, EventKind.ABORTED, reason="bad"))
    assert decided(2, *NOTED_1, *aborted) == (RequestedByAlias(version=TWO, channel="production", expect=2),)


def test_after_a_rollback_with_the_registry_down_the_alias_follows():
    entries = (*NOTED_1, release(2, 2), live(2), event(2, EventKind.ALIAS_SET), release(3, 1), live(3))
    assert decided(2, *entries) == (SetAlias(release_id=3, version=ONE, channel="production"),)
