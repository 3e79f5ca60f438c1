"""Leases, hand-over and the change of shards, broken one by one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from typing import Any
from unittest.mock import patch

from amqp.exceptions import RecoverableConnectionError

from simulation.breaking import mutation
from worker.executor import Executor
from worker.leases.rules import Book, LeaseRow
from worker.link import Link
from worker.resharding import declared_by
from worker.sharding.generations import Phase, Plan
from worker.supervisor.process import ChildProcess
from worker.supervisor.resharder import _CONNECTED, Resharder
from worker.tenure import Tenure
from worker.transport.inbound import Inbound, _tag
from worker.transport.queuechannel import QueueChannel

#: What two owners of one lease come to.
_WITHOUT = ("begins without its lease", "has the fence of another", "two processes of a shard")

# -- who may begin


@mutation("sleepers", 3, off="fence check when it begins", sees=_WITHOUT)
def begins_without_looking_at_its_lease() -> Iterator[None]:
    def careless(self: Executor, task: Any, now: float) -> int | None:
        if self.draining or now > task.trusted_until:
            return None
        fence = self.fences.get(task.message.shard)
        return max(self.fences.values(), default=1) if fence is None else fence

    with (
        patch.object(Executor, "_fence_for", careless),
        patch.object(Executor, "is_trusted", lambda *_: True),
    ):
        yield


@mutation("naps", 5, off="trust in a lease, its margin", sees=_WITHOUT)
def leases_are_trusted_past_their_end() -> Iterator[None]:
    with patch("worker.supervisor.keeper.trusted_until", lambda asked_at, ttl: asked_at + 2 * ttl):
        yield


# -- leases and hand-over


@mutation("members", 16, off="one owner of a lease", sees=_WITHOUT)
def a_lease_is_granted_while_it_is_owned() -> Iterator[None]:
    """Of two who ask for what was free when they looked, the second one gets it too."""

    def grant(self: Book, said: Any, options: Any, *, now: float, floor: int) -> Any:
        for name in said.acquire:
            row = self.leases.get(name)
            if row is not None and row.owner != said.member:
                self.leases[name] = row._replace(owner="")
        return sync(self, said, options, now=now, floor=floor)

    sync = Book.sync
    with patch.object(Book, "sync", grant):
        yield


@mutation("naps", 8, off="length of a lease", sees=_WITHOUT)
def a_lease_ends_before_its_time() -> Iterator[None]:
    def is_owned(self: Book, row: LeaseRow) -> bool:
        return bool(row.owner) and row.until > self.watched + 1.7

    with patch.object(Book, "_is_owned", is_owned):
        yield


@mutation("members", off="rising fences", sees=("has the fence of another", "a fence that fell"))
def the_epoch_does_not_rise() -> Iterator[None]:
    sync = Book.sync

    def keep(self: Book, said: Any, options: Any, *, now: float, floor: int) -> Any:
        self.granted = 0
        return sync(self, said, options, now=now, floor=1)

    with patch.object(Book, "sync", keep):
        yield


@mutation(
    "members",
    off="hand-over: finish first",
    sees=("gives its shard while it runs", "two processes of a shard at once"),
)
def given_before_running_handlers_end() -> Iterator[None]:
    def give(self: Tenure, shards: Iterable[int]) -> None:
        given = [shard for shard in shards if shard in self._executor.fences]
        before(self, given)
        self._finish([shard for shard in given if shard in self._leaving])

    before = Tenure.give
    with patch.object(Tenure, "give", give):
        yield


@mutation(
    "members", off="hand-over: close, then give", sees=("given before it is closed", "out of order")
)
def given_before_its_channel_is_closed() -> Iterator[None]:
    def finish(self: Tenure, shards: list[int]) -> None:
        given, self._given = self._given, lambda _shards: None
        try:
            if shards:
                given(shards)
            before(self, shards)
        finally:
            self._given = given

    before = Tenure._finish
    with patch.object(Tenure, "_finish", finish):
        yield


@mutation(
    "members", off="hand-over: close, then give", sees=("given before it is closed", "out of order")
)
def a_channel_is_left_open() -> Iterator[None]:
    with patch.object(Link, "close_channel", lambda *_: None):
        yield


def _cancel(channel: QueueChannel) -> None:
    """End the consumer of a channel; what it holds it goes on holding."""
    with suppress(RecoverableConnectionError):
        channel.channel.basic_cancel(_tag(channel.shard))


@mutation("sleepers", 4, off="hand-over: close, never cancel", sees="out of order")
def cancelled_before_it_is_closed() -> Iterator[None]:
    """A channel that is left is cancelled at once, and closed when its handlers have ended."""

    def give(self: Tenure, shards: Iterable[int]) -> None:
        given = [*shards]
        before(self, given)
        for channel in self._channels(given):
            if channel.leaving and not channel.closed:
                _cancel(channel)

    def lose(self: Tenure, shards: Collection[int]) -> None:
        self.give(shards)
        self._lost.update(shard for shard in shards if shard in self._leaving)

    before = Tenure.give
    with patch.object(Tenure, "give", give), patch.object(Tenure, "lose", lose):
        yield


@mutation("naps", off="hand-over: close, never cancel", sees="out of order")
def cancelled_when_it_is_given_and_closed_later() -> Iterator[None]:
    """Its lease is released with the cancel, and the channel closed a moment after that."""
    late: dict[Tenure, list[tuple[float, QueueChannel]]] = {}

    def finish(self: Tenure, shards: list[int]) -> None:
        def cancel(_: Inbound, channel: QueueChannel) -> None:
            channel.closed = channel.leaving = True
            _cancel(channel)
            late.setdefault(self, []).append((self._clock() + 0.5, channel))

        with patch.object(Inbound, "close_channel", cancel):
            before(self, shards)

    def check(self: Tenure, now: float) -> None:
        checked(self, now)
        for due, channel in [*late.get(self, ())]:
            if due <= now:
                late[self].remove((due, channel))
                with suppress(RecoverableConnectionError):
                    channel.channel.close()

    before, checked = Tenure._finish, Tenure.check
    with patch.object(Tenure, "_finish", finish), patch.object(Tenure, "check", check):
        yield


@mutation("sleepers", 4, off="fence check when it ends", sees="outlived its lease unsaid")
def it_is_not_said_who_outlived_its_lease() -> Iterator[None]:
    with patch.object(Tenure, "witnessing", lambda _, resolve: resolve):
        yield


# -- the number of shards


@mutation("reshard", off="reshard: drain", sees=("out of order", "lost"))
def the_old_shards_are_not_drained() -> Iterator[None]:
    advanced = Plan.advanced

    def skip(self: Plan) -> Plan:
        after = advanced(self)
        return advanced(after) if after.phase is Phase.DRAIN else after

    with patch.object(Plan, "advanced", skip):
        yield


@mutation("reshard", off="reshard: markers", sees=("out of order", "lost"))
def a_shard_counts_as_drained_before_its_marker() -> Iterator[None]:
    with patch.object(QueueChannel, "drained", property(lambda _: True)):
        yield


@mutation("reshard", 16, off="reshard: bind", sees="lost")
def the_new_shards_are_not_bound() -> Iterator[None]:
    def unbound(app: Any, settings: Any, plan: Plan) -> tuple[Any, ...]:
        declared = declared_by(app, settings, plan)
        return declared if plan.target is None else (*declared[:-1], declared[-1].unbound())

    with (
        patch("worker.resharding.declared_by", unbound),
        patch("worker.tenure.declared_by", unbound),
        patch("worker.assembly.declared_by", unbound),
    ):
        yield


@mutation("releases", 2, off="reshard: all follow before it seals", sees="lost")
def nobody_is_waited_for_before_the_old_shards_are_sealed() -> Iterator[None]:
    """What only a newer release takes is bound by nobody else, and lost until it does."""

    def lead(self: Resharder, plan: Plan, children: Any, now: float) -> None:
        if plan.phase is Phase.BIND:
            self._advance(plan, now)
        else:
            before(self, plan, children, now)

    before = Resharder._lead
    with patch.object(Resharder, "_lead", lead):
        yield


@mutation("releases", 200, off="reshard: all follow before it seals", sees="lost")
def who_has_no_process_is_not_waited_for() -> Iterator[None]:
    """The same, where the only process that could bind it has just died."""

    def drive(self: Resharder, children: Iterable[ChildProcess], now: float) -> None:
        listed = [*children]
        before(self, listed, now)
        if not any(child.stage in _CONNECTED for child in listed):
            self.followed = self.version

    before = Resharder.drive
    with patch.object(Resharder, "drive", drive):
        yield


@mutation("flickers", 10, off="reshard: all follow before it removes", sees="left of an earlier")
def nobody_is_waited_for_before_the_old_shards_are_removed() -> Iterator[None]:
    """Who does not know yet, and connects anew, brings them back."""

    def lead(self: Resharder, plan: Plan, children: Any, now: float) -> None:
        if plan.phase is Phase.REMOVE:
            self._take_step(plan, children, now)
        else:
            before(self, plan, children, now)

    before = Resharder._lead
    with patch.object(Resharder, "_lead", lead):
        yield
