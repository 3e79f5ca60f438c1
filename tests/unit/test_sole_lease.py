"""One lease that one process has at a time, for a job of a service."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from waiting import until
from worker import App
from worker.errors import LeasesUnavailable
from worker.leases.base import LeaseOptions, Sync, View
from worker.leases.memory import MemoryLeases
from worker.leases.sole import SoleLease

_TTL = 8.0


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class Store(MemoryLeases):
    """One that both processes see; it can be away."""

    away = False

    def sync(self, service: str, sync: Sync) -> View:
        if self.away:
            raise LeasesUnavailable("it was unplugged")
        return super().sync(service, sync)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("worker.leases.sole.lease_clock", clock)
    return clock


@pytest.fixture
def store(clock: Clock) -> Store:
    return Store(LeaseOptions(_TTL), clock)


@pytest.fixture
def member(store: Store) -> Callable[[], SoleLease]:
    return lambda: SoleLease(lambda: store, "bank:outbox", "outbox", _TTL)


def test_the_first_one_has_it_and_the_second_one_waits(
    store: Store, member: Callable[[], SoleLease]
) -> None:
    first, second = member(), member()
    for each in (first, second, first, second):
        each.turn(store)
    assert (first.is_mine(), second.is_mine()) == (True, False)


def test_who_does_not_renew_it_loses_it_before_another_has_it(
    store: Store, clock: Clock, member: Callable[[], SoleLease]
) -> None:
    first, second = member(), member()
    first.turn(store)
    while not second.is_mine():
        assert clock.now < 3 * _TTL, "nobody ever has it again"
        clock.now += _TTL / 8
        second.turn(store)
        assert not (first.is_mine() and second.is_mine())


def test_who_was_paused_and_comes_back_is_the_second_one(
    store: Store, clock: Clock, member: Callable[[], SoleLease]
) -> None:
    first, second = member(), member()
    first.turn(store)
    for _ in range(20):
        clock.now += _TTL / 8
        second.turn(store)
    assert not first.is_mine()
    first.turn(store)
    assert (first.is_mine(), second.is_mine()) == (False, True)


def test_while_the_store_is_away_it_is_trusted_to_its_end(
    store: Store, clock: Clock, member: Callable[[], SoleLease]
) -> None:
    lease = member()
    lease.turn(store)
    store.away = True
    with pytest.raises(LeasesUnavailable):
        lease.turn(store)
    clock.now += _TTL / 2
    assert lease.is_mine()
    clock.now += _TTL / 2
    assert not lease.is_mine()


def app_with(tmp_path: Path) -> App:
    return App("bank", broker=f"sqlite:///{tmp_path / 'broker.db'}", settings={"lease_ttl": 1.0})


def test_an_app_gives_a_lease_back_at_once(tmp_path: Path) -> None:
    with app_with(tmp_path).lease("outbox") as first:
        assert first.is_mine()
        with app_with(tmp_path).lease("outbox") as second:
            assert not second.is_mine()
            first.__exit__()
            assert not first.is_mine()
            until(second.is_mine, 5.0, "the second one has it")


def test_it_is_renewed_while_the_block_runs(tmp_path: Path) -> None:
    with app_with(tmp_path).lease("outbox") as lease:
        seen = lease._trusted_until
        until(lambda: lease._trusted_until > seen + 1.0, 10.0, "it was renewed past its first end")
        assert lease.is_mine()


def test_leases_of_other_names_are_other_leases(tmp_path: Path) -> None:
    app = app_with(tmp_path)
    with app.lease("outbox") as one, app.lease("report") as other:
        assert one.is_mine()
        assert other.is_mine()


def test_a_store_that_is_not_there_is_told_at_the_start() -> None:
    settings = {"leases": "redis://127.0.0.1:1/0", "connect_timeout": 0.2}
    app = App("bank", broker="memory://", settings=settings)
    with pytest.raises(LeasesUnavailable), app.lease("outbox"):
        pass
