"""Queues of an old generation are removed when nothing can return to them any more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import amqp
import kombu.connection
import pytest

from waiting import until
from worker import App, Event
from worker.config import load_settings
from worker.errors import BrokerUnreachable
from worker.inspector import Inspector
from worker.resharding import Resharding, Talk
from worker.sharding.generations import Generation, Phase, Plan
from worker.testing import FakeClock
from worker.topology import RETRY_SECONDS, retry_queue

#: Longer than any retry waits, and what is on its way takes.
LONG = 2 * RETRY_SECONDS[-1]
#: Between two looks, as long as it takes for them to count as two; and as they follow each other.
PAUSE, OFTEN = 10.0, 30.0


class Step(Event, name="step", key="line"):
    """What the service observes."""

    line: str


class Change:
    """Changes of the number of shards of a service, by the steps of one process."""

    def __init__(self, folder: Path) -> None:
        app = App("bank")
        app.on(Step)(lambda event: None)
        self.settings = load_settings({"broker": f"sqlite:///{folder}/broker.db"}, {}, folder)
        self.clock = FakeClock()
        self.steps = Resharding(app, self.settings, clock=self.clock)
        self.inspector = Inspector("bank", self.settings)
        self.plan = Plan(Generation(1, 1))
        self.steps.declare(self.plan)

    def begin(self, shards: int) -> None:
        """Go on to where the old queues are to be removed; nobody consumes them any more."""
        self.plan = self.plan.reshard(shards)
        while self.plan.phase is not Phase.REMOVE:
            if self.plan.phase is Phase.BIND:
                self.steps.declare(self.plan)
            assert self.steps.take(self.plan)
            self.plan = self.plan.advanced()

    def look(self) -> bool:
        """Try to remove the old queues; tell whether that is done."""
        return self.steps.take(self.plan)

    def keep_looking(self, seconds: float) -> bool:
        """Look now and then for so long, or until the old queues are removed."""
        end = self.clock() + seconds
        while not (done := self.look()) and self.clock() < end:
            self.clock.advance(OFTEN)
        return done

    def end(self) -> None:
        """Go on to the end of the change."""
        assert self.keep_looking(2 * LONG)
        self.plan = self.plan.advanced()

    def put(self, queue: str) -> None:
        message = amqp.Message(b"{}", message_id="1", type="step", delivery_mode=2)
        self.inspector.ask(lambda channel: channel.basic_publish(message, "", queue))

    def let_a_retry_wait(self) -> None:
        """Have a message wait in the broker for its return."""
        queue = retry_queue("bank", RETRY_SECONDS[-1])
        self.inspector.ask(lambda channel: channel.queue_declare(queue, durable=True))
        self.put(queue)
        until(lambda: self.depth(queue) == 1)

    def depth(self, queue: str) -> int | None:
        """How full a queue is; None: it is not there."""
        found = self.inspector.depth(queue)
        return None if found is None else found.ready


@pytest.fixture
def change(tmp_path: Path) -> Iterator[Change]:
    change = Change(tmp_path)
    with change.inspector:
        yield change


def test_they_are_removed_after_two_looks_that_found_nothing(change: Change) -> None:
    change.begin(2)
    assert not change.look(), "the marker was in them"
    assert not change.look(), "something may be on its way"
    change.clock.advance(PAUSE)

    assert change.look()
    assert change.depth("bank.g1.0") is None


def test_what_was_on_its_way_at_the_first_look_is_moved(change: Change) -> None:
    change.begin(2)
    change.look()
    change.clock.advance(PAUSE)
    assert not change.look()

    change.put("bank.g1.0")
    change.clock.advance(PAUSE)
    assert not change.look(), "where one came, another may"
    assert sum(change.depth(f"bank.g2.{shard}") or 0 for shard in range(2)) == 1

    change.end()
    assert change.depth("bank.g1.0") is None


def test_two_looks_at_nearly_the_same_time_are_one(change: Change) -> None:
    change.begin(2)
    for _ in range(5):
        assert not change.look()


def test_retries_that_wait_are_waited_for_as_long_as_the_longest_wait(change: Change) -> None:
    change.let_a_retry_wait()
    change.begin(2)

    assert not change.keep_looking(RETRY_SECONDS[-1])
    assert change.keep_looking(LONG)


def test_they_are_waited_for_as_long_in_the_next_change(change: Change) -> None:
    change.begin(2)
    change.end()
    change.let_a_retry_wait()
    change.clock.advance(LONG)

    change.begin(3)
    assert not change.keep_looking(RETRY_SECONDS[-1])
    assert change.depth("bank.g2.0") is not None


def test_what_another_process_has_ended_meanwhile_does_not_count_for_the_next_change(
    change: Change,
) -> None:
    """This one looked at the old queues of a change that somebody else has ended."""
    change.let_a_retry_wait()
    change.begin(2)
    assert not change.look()
    change.plan = change.plan.advanced()
    change.begin(3)
    change.clock.advance(LONG)

    assert not change.keep_looking(RETRY_SECONDS[-1])


def test_time_in_which_the_broker_was_away_does_not_count(
    change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retries whose wait ended meanwhile have yet to be moved, all of them."""

    def away(*_args: object, **_options: object) -> None:
        raise BrokerUnreachable("away")

    change.let_a_retry_wait()
    change.begin(2)
    assert not change.look()
    with monkeypatch.context() as patch:
        patch.setattr("worker.resharding.connect", away)
        for _ in range(int(LONG / OFTEN)):
            change.clock.advance(OFTEN)
            with pytest.raises(BrokerUnreachable):
                change.look()

    change.clock.advance(OFTEN)
    assert not change.keep_looking(RETRY_SECONDS[-1])


def test_time_in_which_nobody_looked_does_not_count(change: Change) -> None:
    change.let_a_retry_wait()
    change.begin(2)
    assert not change.look()
    change.clock.advance(LONG)

    assert not change.keep_looking(RETRY_SECONDS[-1])


class Connection:
    """As much of a connection as it takes to be lost, or refused something."""

    channel_errors = (amqp.exceptions.ChannelError,)
    connection_errors = (amqp.exceptions.ConnectionError, OSError)

    def __init__(self, error: Exception) -> None:
        self.error = error

    def channel(self) -> object:
        raise self.error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (amqp.exceptions.AccessRefused("not yours"), "the broker refused .* not yours"),
        (amqp.exceptions.ConnectionForced("shutdown"), "the connection .* is lost: .*shutdown"),
        (ConnectionResetError(), "the connection .* is lost: ConnectionResetError"),
    ],
)
def test_a_step_that_is_refused_is_told_from_a_connection_that_is_lost(
    error: Exception, told: str
) -> None:
    talk = Talk(cast("kombu.connection.Connection", Connection(error)))
    with pytest.raises(BrokerUnreachable, match=told):
        talk.ask(lambda _channel: None)
