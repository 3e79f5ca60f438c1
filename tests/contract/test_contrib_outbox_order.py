"""Transactions that overlap: the safe horizon, and the order of a key among many that send."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from random import Random

import pytest
from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    delete,
    insert,
    select,
    text,
)
from worker.contrib.outbox import OutboxUnavailable, columns_of
from worker.contrib.outbox.loop import Loop
from worker.contrib.sqlalchemy.pending import _XID
from worker.contrib.sqlalchemy.tables import outbox_table

from outboxes import Desk, Noted, by_key, sent
from worker.testing import TestWorker

_MINE = MetaData()
counters = Table(
    "counter", _MINE, Column("name", String(50), primary_key=True), Column("next", Integer)
)
Open = Callable[[], Connection]


@pytest.fixture(autouse=True)
def _counters(engine: Engine) -> None:
    _MINE.create_all(engine)


on_postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


def write(connection: Connection, desk: Desk, *events: Noted) -> None:
    """Write rows, and let the transaction stand open."""
    rows = [columns_of("desk", desk.app.encode(event)) for event in events]
    statement = insert(outbox_table)
    if connection.dialect.name == "postgresql":
        statement = statement.values(transaction_id=_XID)
    connection.execute(statement, rows)


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
def test_a_long_transaction_about_something_else_holds_back_nothing(
    desk: Desk, worker: TestWorker
) -> None:
    with desk.engine.connect() as long:
        long.execute(insert(counters), [{"name": "unrelated", "next": 0}])
        long.execute(select(outbox_table))
        desk.leave(Noted(key="a", number=0))
        assert desk.relay().turn().sent == 1
    assert sent(worker) == [("a", 0)]


@on_postgresql
class TestHorizon:
    """PostgreSQL lets transactions commit in another order than their sequence numbers'."""

    def test_a_row_waits_for_an_older_one_of_a_transaction_that_is_open(
        self, desk: Desk, worker: TestWorker
    ) -> None:
        with desk.engine.connect() as slow:
            write(slow, desk, Noted(key="a", number=0))
            desk.leave(Noted(key="a", number=1), Noted(key="b", number=0))
            passed = desk.relay().turn()
            assert (passed.sent, passed.held) == (0, 2)
            assert not passed.is_last
            slow.commit()
        assert desk.relay().turn().sent == 3
        assert by_key(sent(worker)) == {"a": [0, 1], "b": [0]}

    def test_it_goes_on_where_that_one_is_rolled_back(self, desk: Desk, worker: TestWorker) -> None:
        with desk.engine.connect() as slow:
            write(slow, desk, Noted(key="a", number=-1))
            desk.leave(Noted(key="a", number=0))
            assert desk.relay().turn().held == 1
        assert desk.relay().turn().sent == 1
        assert sent(worker) == [("a", 0)]

    def test_what_is_sent_at_once_waits_too(self, desk: Desk, worker: TestWorker) -> None:
        with desk.engine.connect() as slow:
            write(slow, desk, Noted(key="a", number=0))
            with desk.begin() as deal:
                deal.publish(Noted(key="a", number=1))
            assert not desk.outbox.flush(0.1)
            assert sent(worker) == []
            slow.rollback()
        assert desk.outbox.flush()
        assert sent(worker) == [("a", 1)]

    def test_what_waits_for_too_long_is_left_to_the_relay(
        self, desk: Desk, worker: TestWorker
    ) -> None:
        with desk.engine.connect() as slow:
            write(slow, desk, Noted(key="a", number=0))
            with desk.begin() as deal:
                deal.publish(Noted(key="a", number=1))
            assert desk.outbox.flush(30)
            slow.commit()
        desk.relay().turn()
        assert sent(worker) == [("a", 0), ("a", 1)]

    def test_one_that_published_and_is_not_about_to_commit_holds_back_nothing(
        self, desk: Desk, worker: TestWorker
    ) -> None:
        with desk.begin() as deal:
            deal.execute("INSERT INTO counter (name, next) VALUES ('mine', 0)")
            deal.publish(Noted(key="a", number=1), by=desk.dying)
            with ThreadPoolExecutor(1) as other:  # this thread's transaction is the open one
                other.submit(desk.leave, Noted(key="a", number=0)).result(30)
            assert desk.relay().turn().sent == 1
        desk.relay().turn()
        assert sent(worker) == [("a", 0), ("a", 1)]

    def test_a_row_that_is_not_held_waits_behind_one_of_its_key_that_is(
        self, desk: Desk, worker: TestWorker
    ) -> None:
        """The second transaction got its number first, and wrote its row after the first one's."""
        with ExitStack() as stack:
            early, between, later = (stack.enter_context(desk.engine.connect()) for _ in range(3))
            early.execute(insert(counters), [{"name": "early", "next": 0}])
            write(between, desk, Noted(key="b", number=0))
            write(later, desk, Noted(key="a", number=0))
            later.commit()
            write(early, desk, Noted(key="a", number=1))
            early.commit()
            passed = desk.relay().turn()
            assert (passed.sent, passed.held) == (0, 1)
            between.commit()
        assert desk.relay().turn().sent == 3
        assert by_key(sent(worker))["a"] == [0, 1]

    def test_within_a_pass_nothing_is_taken_that_came_after_its_begin(
        self, desk: Desk, worker: TestWorker
    ) -> None:
        """Of a transaction that had its number by then, no row, and had to wait for another one."""
        with desk.engine.connect() as first, desk.engine.connect() as second:
            second.execute(insert(counters), [{"name": "second", "next": 0}])
            write(first, desk, Noted(key="a", number=0))
            desk.leave(*(Noted(key=f"k{n}", number=0) for n in range(3)))
            looks = 0

            def may_go_on() -> bool:
                nonlocal looks
                looks += 1
                if looks == 2:
                    first.commit()
                    write(second, desk, Noted(key="a", number=1))
                    second.commit()
                return True

            relay = desk.relay(batch=2)
            relay._may_go_on = may_go_on
            relay.turn()
            assert ("a", 1) not in sent(worker)
        desk.relay().turn()
        assert by_key(sent(worker))["a"] == [0, 1]

    def test_within_a_pass_the_horizon_stays(self, desk: Desk, worker: TestWorker) -> None:
        """Else a later batch would see what depends on rows that an earlier one could not see."""
        filler = [Noted(key=f"k{n}", number=0) for n in range(3)]
        with desk.engine.connect() as slow:
            write(slow, desk, Noted(key="a", number=0))
            desk.leave(*filler, Noted(key="a", number=1))
            reads = 0

            def may_go_on() -> bool:
                nonlocal reads
                reads += 1
                if reads == 2:
                    slow.commit()
                return True

            relay = desk.relay(batch=2)
            relay._may_go_on = may_go_on
            relay.turn()
            assert ("a", 1) not in sent(worker)
        desk.relay().turn()
        assert by_key(sent(worker))["a"] == [0, 1]


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
class TestLocks:
    """MariaDB does so too, and who reads waits for a transaction that is open."""

    @pytest.mark.parametrize("ending", ["commit", "rollback"])
    def test_a_row_waits_for_an_older_one_of_a_transaction_that_is_open(
        self, desk: Desk, worker: TestWorker, ending: str
    ) -> None:
        with desk.engine.connect() as slow:
            write(slow, desk, Noted(key="a", number=0))
            desk.leave(Noted(key="a", number=1), Noted(key="b", number=0))
            with pytest.raises(OutboxUnavailable, match="Lock wait timeout"):
                desk.relay().turn()
            assert sent(worker) == []
            getattr(slow, ending)()
        desk.relay().turn()
        assert by_key(sent(worker)) == {"a": [0, 1] if ending == "commit" else [1], "b": [0]}

    def test_what_is_sent_at_once_is_left_to_the_relay(
        self, desk: Desk, worker: TestWorker
    ) -> None:
        with desk.engine.connect() as slow:
            write(slow, desk, Noted(key="a", number=0))
            with desk.begin() as deal:
                deal.publish(Noted(key="a", number=1))
            assert desk.outbox.flush(30)
            assert sent(worker) == []
            slow.commit()
        desk.relay().turn()
        assert sent(worker) == [("a", 0), ("a", 1)]

    def test_who_reads_keeps_no_lock(self, desk: Desk, worker: TestWorker) -> None:
        """Nor does a number that comes next have to wait for who has removed the last one."""
        desk.leave(Noted(key="a", number=0))
        (entry,) = desk.rows.read(10)
        with desk.engine.connect() as other:
            other.execute(text("SET innodb_lock_wait_timeout = 1"))
            write(other, desk, Noted(key="a", number=1))
            other.execute(delete(outbox_table).where(outbox_table.c.sequence == entry.sequence))
            other.commit()
        desk.relay().turn()
        assert sent(worker) == [("a", 1)]


@contextmanager
def relaying(desk: Desk, count: int) -> Iterator[None]:
    """Let relays without a lease send in threads while the block runs, and to the end of it all."""
    stop = threading.Event()

    def relay() -> None:
        Loop(desk.relay(batch=7), desk.rows, lambda: True, stop, pause=0.001).stand()

    with ThreadPoolExecutor(max(count, 1)) as threads:
        futures = [threads.submit(relay) for _ in range(count)]
        try:
            yield
        finally:
            stop.set()
        for future in futures:
            future.result(30)


@pytest.mark.parametrize("relays", [0, 2])
def test_the_order_of_a_key_is_that_of_its_commits_whoever_sends(
    desk: Desk, worker: TestWorker, relays: int
) -> None:
    """Processes that change the same accounts publish, send, and die before they send."""
    keys = [f"k{n}" for n in range(3)]
    with desk.engine.begin() as connection:
        connection.execute(insert(counters), [{"name": key, "next": 0} for key in keys])
    outboxes = [desk.another() for _ in range(3)]

    def publish(number: int) -> None:
        random = Random(number)
        outbox = outboxes[number % len(outboxes)]
        for _ in range(25):
            chosen = sorted(random.sample(keys, random.randint(1, 2)))
            with desk.begin() as deal:
                for key in chosen:
                    deal.execute("UPDATE counter SET next = next + 1 WHERE name = :key", key=key)
                    ((after,),) = deal.execute(
                        "SELECT next FROM counter WHERE name = :key", key=key
                    )
                    sender = desk.dying if random.random() < 0.2 and relays else outbox
                    deal.publish(Noted(key=key, number=after - 1), by=sender)

    with relaying(desk, relays), ThreadPoolExecutor(4) as threads:
        for future in [threads.submit(publish, number) for number in range(4)]:
            future.result(60)
    assert all(outbox.flush(60) for outbox in outboxes)
    if not relays:
        assert desk.left() == 0, "who had an older row of the key has sent it"
    desk.relay().turn()
    copies = sent(worker)
    first = by_key(dict.fromkeys(copies))
    with desk.engine.connect() as connection:
        ends = {row.name: row.next for row in connection.execute(select(counters))}
    assert first == {key: [*range(end)] for key, end in ends.items()}
    assert desk.left() == 0


def test_processes_with_keys_of_their_own_send_each_row_once(
    desk: Desk, worker: TestWorker
) -> None:
    outboxes = [desk.another() for _ in range(3)]

    def publish(number: int) -> None:
        for place in range(20):
            with desk.begin() as deal:
                deal.publish(Noted(key=f"k{number}", number=place), by=outboxes[number])

    with ThreadPoolExecutor(3) as threads:
        for future in [threads.submit(publish, number) for number in range(3)]:
            future.result(60)
    assert all(outbox.flush(60) for outbox in outboxes)
    assert by_key(sent(worker)) == {f"k{number}": [*range(20)] for number in range(3)}


def test_numbers_are_not_given_twice(desk: Desk, worker: TestWorker) -> None:
    desk.leave(Noted(key="a", number=0))
    newest = desk.rows.newest()
    with desk.engine.begin() as connection:
        connection.execute(delete(outbox_table))
    desk.leave(Noted(key="a", number=1))
    assert desk.rows.newest() > newest


@on_postgresql
def test_a_row_tells_its_transaction(desk: Desk) -> None:
    with desk.begin() as deal:
        deal.publish(Noted(key="a", number=0), by=desk.dying)
        ((mine,),) = deal.execute("SELECT pg_current_xact_id()::text::bigint")
    (entry,) = desk.rows.read(10)
    assert entry.transaction == mine
