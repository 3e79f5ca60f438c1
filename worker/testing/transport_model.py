"""A model of a broker's queues as lists, and random histories that compare a transport with it."""
# ruff: noqa: S101, D102 - a test; its rules say what they do

from __future__ import annotations

import itertools
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from operator import methodcaller
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from worker.testing.transport_peer import PATIENCE, message

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.testing.transport_peer import Features, Peer, Reader

#: One with a single active consumer, one with priorities where the transport has them.
QUEUES = ("plain", "single", "ranked")
#: Of all consumers of the queue with a single active one. With fewer, RabbitMQ's quorum queues
#: would put what a successor gives back behind what it was not given yet.
_PREFETCH_OF_SINGLE = 3
_MOST_READERS = 5
_TOP_PRIORITY = 2


@dataclass(eq=False)
class Entry:
    """A message as the model knows it."""

    number: int
    rank: int
    redelivered: bool = False

    @property
    def place(self) -> tuple[int, int]:
        return self.rank, self.number


@dataclass(eq=False)
class Holder:
    """A consumer: the real one, and what the model says that it holds, by delivery tag."""

    reader: Reader
    peer: Peer
    queue: str
    prefetch: int
    held: dict[int, Entry] = field(default_factory=dict)
    cancelled: bool = False

    @property
    def room(self) -> int:
        return 0 if self.cancelled else self.prefetch - len(self.held)


class TransportMachine(RuleBasedStateMachine):
    """Publishes, takes, settles, cancels and closes at random."""

    def __init__(self, peers: Callable[[int], list[Peer]], features: Features) -> None:
        super().__init__()
        self.features = features
        self.open = peers
        self.peers = peers(2)
        (self.publisher,) = peers(1)
        own = os.urandom(4).hex()
        self.names = {queue: f"{own}.{queue}" for queue in QUEUES}
        self.publisher.declare(self.names["plain"])
        self.publisher.declare(self.names["single"], **{"x-single-active-consumer": True})
        ranks = {"x-max-priority": _TOP_PRIORITY} if features.priorities else {}
        self.publisher.declare(self.names["ranked"], **ranks)
        self.ready: dict[str, list[Entry]] = {queue: [] for queue in QUEUES}
        self.holders: list[Holder] = []
        #: Who was given something of the single-active queue last.
        self.active: Holder | None = None
        self.numbers = itertools.count()

    def teardown(self) -> None:
        for peer in self.peers:
            peer.close()
        for name in self.names.values():
            self.publisher.ask(methodcaller("queue_delete", name))
        self.publisher.close()

    # Publishing, and the queue as a whole

    @rule(
        queue=st.sampled_from(QUEUES),
        priorities=st.lists(st.integers(0, _TOP_PRIORITY + 1), max_size=5),
        whole=st.booleans(),
    )
    def publish(self, queue: str, priorities: list[int], *, whole: bool) -> None:
        numbers = list(itertools.islice(self.numbers, len(priorities)))
        ranked = queue == "ranked" and self.features.priorities
        entries = [
            Entry(number, -min(priority, _TOP_PRIORITY) if ranked else 0)
            for number, priority in zip(numbers, priorities, strict=True)
        ]
        batch = [
            (message(b"%d" % number, priority=priority), "", self.names[queue])
            for number, priority in zip(numbers, priorities, strict=True)
        ]
        if whole and self.features.batches:
            whole_batch = [(*each, True) for each in batch]
            assert self.publisher.ask(lambda channel: channel.publish_many(whole_batch)) == []
            self.add(queue, entries)
        elif ranked and self.features.lag:  # the first is given before the next, of higher rank
            for one, entry in zip(batch, entries, strict=True):
                self.publisher.send([one])
                self.add(queue, [entry])
                self.take_all()
        else:
            self.publisher.send(batch)
            self.add(queue, entries)
        assert self.publisher.returned == []

    def add(self, queue: str, entries: list[Entry]) -> None:
        self.ready[queue] += entries
        self.ready[queue].sort(key=lambda entry: entry.place)

    @rule(queue=st.sampled_from(QUEUES))
    def purge(self, queue: str) -> None:
        name = self.names[queue]
        purged = self.publisher.ask(lambda channel: channel.queue_purge(name))
        assert purged == len(self.ready[queue])
        self.ready[queue].clear()

    # Consumers

    @precondition(lambda self: len(self.holders) < _MOST_READERS)
    @rule(which=st.integers(0, 1), queue=st.sampled_from(QUEUES), prefetch=st.integers(1, 4))
    def consume(self, which: int, queue: str, prefetch: int) -> None:
        prefetch = _PREFETCH_OF_SINGLE if queue == "single" else prefetch
        peer = self.peers[which]
        reader = peer.read(self.names[queue], prefetch)
        self.holders.append(Holder(reader, peer, queue, prefetch))

    @precondition(lambda self: any(self.may_cancel(each) for each in self.holders))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from([h for h in self.holders if self.may_cancel(h)]))
        holder.reader.channel.basic_cancel(holder.reader.tag)
        holder.cancelled = True

    def may_cancel(self, holder: Holder) -> bool:
        return holder.queue != "single" or self.features.waits_after_cancel

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def close_channel(self, data: st.DataObject) -> None:
        self.close_one(data.draw(st.sampled_from(self.holders)))

    def close_one(self, holder: Holder) -> None:
        holder.reader.channel.close()
        self.leave([holder])

    @rule(which=st.integers(0, 1))
    def close_connection(self, which: int) -> None:
        peer = self.peers[which]
        if self.features.lag:
            # Its channels end in an order that nobody knows, and what the first gives back may be
            # given to somebody before the next ends. So a queue is left by one of them.
            last = {holder.queue: holder for holder in self.holders if holder.peer is peer}
            for holder in [h for h in self.holders if h.peer is peer and h is not last[h.queue]]:
                self.close_one(holder)
                self.take_all()
        peer.close()
        self.leave([holder for holder in self.holders if holder.peer is peer])
        (self.peers[which],) = self.open(1)

    def leave(self, leaving: list[Holder]) -> None:
        for holder in leaving:
            self.holders.remove(holder)
            self.give_back(holder.queue, list(holder.held.values()))

    def give_back(self, queue: str, entries: list[Entry]) -> None:
        for entry in entries:
            entry.redelivered = True
        self.add(queue, entries)

    # Settling

    @precondition(lambda self: any(holder.held for holder in self.holders))
    @rule(data=st.data(), multiple=st.booleans())
    def acknowledge(self, data: st.DataObject, *, multiple: bool) -> None:
        holder, tag = self.one_held(data)
        holder.reader.channel.basic_ack(tag, multiple=multiple)
        for settled in [t for t in holder.held if t == tag or (multiple and t < tag)]:
            del holder.held[settled]

    @precondition(lambda self: any(holder.held for holder in self.holders))
    @rule(data=st.data(), requeue=st.booleans())
    def reject(self, data: st.DataObject, *, requeue: bool) -> None:
        holder, tag = self.one_held(data)
        requeue = requeue and self.features.keeps_places
        holder.reader.channel.basic_reject(tag, requeue=requeue)
        entry = holder.held.pop(tag)
        if requeue:
            self.give_back(holder.queue, [entry])

    def one_held(self, data: st.DataObject) -> tuple[Holder, int]:
        holder = data.draw(st.sampled_from([h for h in self.holders if h.held]))
        return holder, data.draw(st.sampled_from(sorted(holder.held)))

    # Taking

    @rule(which=st.integers(0, 1))
    def take_some(self, which: int) -> None:
        with suppress(TimeoutError):
            self.peers[which].connection.drain_events(timeout=0)
        if not self.features.lag:
            self.check_given()

    @rule()
    def take_all(self) -> None:
        """Nothing that could be given is left lying."""
        news = sum(self.due(queue) for queue in QUEUES)
        deadline = time.monotonic() + PATIENCE
        while sum(len(holder.reader.given) for holder in self.holders) < news:
            assert time.monotonic() < deadline, f"{news} messages were due"
            for peer in self.peers:
                with suppress(TimeoutError):
                    peer.connection.drain_events(timeout=0.001)
        self.check_given()

    def due(self, queue: str) -> int:
        """Return how many messages the consumers of a queue have to be given now."""
        holders = [holder for holder in self.holders if holder.queue == queue]
        room = sum(holder.room for holder in holders)
        if queue == "single":
            active = self.active if self.active in holders else None
            if active is not None and (active.held or not active.cancelled):
                room = active.room
            else:
                room = min(room, _PREFETCH_OF_SINGLE)
        return min(room, len(self.ready[queue]))

    def check_given(self) -> None:
        """Check that the consumers were given the heads of their queues, and no more than fits."""
        for queue in QUEUES:
            given = [(h, self.note(h)) for h in self.holders if h.queue == queue]
            given = [(holder, entries) for holder, entries in given if entries]
            if queue == "single" and given:
                self.check_active(given[0][0], len(given))
            taken = [entry for _, entries in given for entry in entries]
            ready = self.ready[queue]
            self.ready[queue] = [entry for entry in ready if entry not in taken]
            if not self.features.keeps_places and queue != "single":
                # Those that were given before come first, in whatever order they came back.
                first = [entry for entry in self.ready[queue] if entry.redelivered]
                taken = [entry for entry in taken if not entry.redelivered]
                assert not (first and taken), "what came back is given before what is new"
                ready = [entry for entry in ready if not entry.redelivered]
                given = [(h, [e for e in es if e in taken]) for h, es in given]
            assert {e.place for e in taken} == {e.place for e in ready[: len(taken)]}
            for _, entries in given:
                places = [entry.place for entry in entries]
                assert places == sorted(places)

    def check_active(self, holder: Holder, count: int) -> None:
        assert count == 1, "one consumer is active"
        before, self.active = self.active, holder
        if before is not holder and before in self.holders:
            assert before is not None
            assert before.cancelled, "who is active stays so while it lives"
            assert not before.held, "and what it holds is settled before the next one's turn"

    def note(self, holder: Holder) -> list[Entry]:
        """Note what a consumer was given, as held; return it."""
        ready = {entry.number: entry for entry in self.ready[holder.queue]}
        entries = []
        for got in holder.reader.given:
            number = int(got.body)
            assert number in ready, f"{number} was given, and is not there to be given"
            assert not holder.cancelled
            entry = ready.pop(number)
            told = got.delivery_info["redelivered"]
            # A broker that delivers unasked may have sent it to one who never saw it.
            assert told is entry.redelivered or (told and self.features.lag)
            holder.held[got.delivery_tag] = entry
            entries.append(entry)
        holder.reader.given.clear()
        assert len(holder.held) <= holder.prefetch
        return entries

    @invariant()
    def counts_are_true(self) -> None:
        if self.features.lag:
            self.take_all()
        for queue, name in self.names.items():
            self.publisher.wait_for_depth(name, len(self.ready[queue]))


def compare_with_model(
    machine: type[TransportMachine],
    peers: Callable[[int], list[Peer]],
    features: Features,
    histories: int,
    steps: int,
) -> None:
    """Run random histories; all that is given and counted must be the model's."""
    made: Any = partial(machine, peers, features)  # a factory is said to be a class, and need not
    run_state_machine_as_test(
        made,
        settings=settings(
            max_examples=histories,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
