"""The contract of `Gateway`, held by the real Envoy and by the in-memory gateway of the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Any

import httpx
import pytest

from registry.errors import TimedOut, Unavailable
from registry.verdict import ReleaseCounters
from serving.ports import Gateway
from serving.routes import Backend, RouteTable
from support.envoy_process import RunningEnvoy, backend, canary, live
from support.fake_gateway import FakeGateway
from support.polling import wait_until
from support.uds_server import UdsServer


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A gateway under test, and what happens to it from outside."""

    gateway: Gateway
    stop: Callable[[], None]
    start: Callable[[], None]
    ask: Callable[[int], None]  # one request to the production channel, answered 200 by that release
    refuse: Callable[[], RouteTable]  # a table that it will not take
    backend: Callable[..., Backend]


class GatewayContract:
    """What every gateway does. It runs and has no routes when a test begins."""

    def test_a_fresh_gateway_has_the_empty_table_or_none(self, subject: Subject) -> None:
        state = subject.gateway.observe()
        assert state.reachable
        assert state.digest in {None, RouteTable().digest}
        assert state.active == {}
        assert state.counters == {}

    def test_a_table_is_used_when_apply_returns(self, subject: Subject) -> None:
        first, second = subject.backend(1), subject.backend(2)
        for table in (live(first), canary(first, second, 10), live(second, first), live(second), RouteTable()):
            subject.gateway.apply(table)
            state = subject.gateway.observe()
            assert state.digest == table.digest
            releases = {one.release_id for one in table.backends}
            assert set(state.active) == releases
            assert set(state.counters) == releases

    def test_apply_can_be_repeated(self, subject: Subject) -> None:
        table = live(subject.backend(1))
        for _ in range(3):
            subject.gateway.apply(table)
            assert subject.gateway.observe().digest == table.digest

    def test_answers_are_counted_per_release_and_survive_a_switch(self, subject: Subject) -> None:
        first, second = subject.backend(1), subject.backend(2)
        subject.gateway.apply(live(first, second))
        for _ in range(3):
            subject.ask(1)
        subject.gateway.apply(live(second, first))
        subject.ask(2)
        counters = subject.gateway.observe().counters
        assert [(counters[release].num_requests, counters[release].num_errors) for release in (1, 2)] == [(3, 0), (1, 0)]
        assert [counters[release].latency_buckets[inf] for release in (1, 2)] == [3, 1]
        assert ReleaseCounters.from_json(counters[1].to_json()) == counters[1]

    def test_a_gateway_that_is_down_says_so_and_takes_the_table_when_it_starts(self, subject: Subject) -> None:
        before, table = live(subject.backend(1)), live(subject.backend(2))
        subject.gateway.apply(before)
        subject.stop()
        assert not subject.gateway.observe().reachable
        assert subject.gateway.observe().digest is None
        with pytest.raises(Unavailable, match="does not answer"):
            subject.gateway.apply(table)
        subject.start()
        assert subject.gateway.observe().digest == table.digest
        assert set(subject.gateway.observe().counters) == {2}

    def test_a_refused_table_changes_nothing(self, subject: Subject) -> None:
        table = live(subject.backend(1))
        subject.gateway.apply(table)
        with pytest.raises(TimedOut, match="the gateway"):
            subject.gateway.apply(subject.refuse())
        wait_until(lambda: subject.gateway.observe().digest == table.digest, what="the table before")

    def test_a_restart_counts_from_zero(self, subject: Subject) -> None:
        subject.gateway.apply(live(subject.backend(1)))
        subject.ask(1)
        before = subject.gateway.observe().counters[1]
        subject.stop()
        subject.start()
        assert subject.gateway.observe().counters[1].num_requests == 0
        assert subject.gateway.observe().counters[1].since(before) is None


class TestFakeGateway(GatewayContract):
    @pytest.fixture
    def subject(self) -> Subject:
        fake = FakeGateway()

        def refuse() -> RouteTable:
            fake.refusing = "socket path too long"
            return live(backend(9, "/x"))

        return Subject(
            gateway=fake,
            stop=lambda: setattr(fake, "down", True),
            start=fake.restart,
            ask=lambda release: fake.count(release, latencies_ms=[3]),
            refuse=refuse,
            backend=lambda release, **more: backend(release, "/run/a.sock", **more),
        )


@pytest.mark.integration
class TestEnvoyGateway(GatewayContract):
    @pytest.fixture
    def subject(self) -> Iterator[Subject]:
        with RunningEnvoy() as envoy, UdsServer(envoy.sockets / "a.sock") as node:

            def ask(release: int) -> None:
                response = httpx.post(f"{envoy.url}/predictions/digits", json={})
                assert (response.status_code, response.headers["x-modelway-release"]) == (200, str(release))

            def make(release: int, **more: Any) -> Backend:
                return backend(release, node.socket, **more)

            yield Subject(
                gateway=envoy.gateway,
                stop=envoy.kill,
                start=lambda: setattr(envoy, "process", envoy.start().process),
                ask=ask,
                refuse=lambda: live(make(1), backend(9, "/x" * 60)),
                backend=make,
            )
