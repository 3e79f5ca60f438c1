"""When everything fails, the messages are not to blame: one probe at a time until one succeeds."""

from __future__ import annotations

from worker.outage import Breaker


def broken(threshold: int = 3, now: float = 100.0) -> Breaker:
    """Return a breaker that has just opened."""
    breaker = Breaker(threshold)
    for number in range(threshold):
        breaker.fail(bytes([number]), now)
    assert breaker.is_open
    return breaker


def test_so_many_different_messages_in_a_row_are_an_outage() -> None:
    breaker = Breaker(3)

    assert [breaker.fail(record, 0.0) for record in (b"a", b"b", b"c")] == [False, False, True]
    assert breaker.failures == 3


def test_one_message_that_fails_again_and_again_is_poison_not_an_outage() -> None:
    breaker = Breaker(3)

    assert not any(breaker.fail(b"poison", float(n)) for n in range(50))
    assert not breaker.is_open


def test_a_success_in_between_starts_the_count_anew() -> None:
    breaker = Breaker(3)
    breaker.fail(b"a", 0.0)
    breaker.fail(b"b", 0.0)
    breaker.succeed()

    assert not breaker.fail(b"c", 0.0)


def test_the_first_probe_comes_soon_and_later_ones_at_growing_intervals() -> None:
    breaker = broken(now=100.0)
    assert breaker.next_probe == 100.5

    waits = []
    for _ in range(10):
        now = breaker.next_probe
        breaker.fail(b"probe", now)
        waits.append(breaker.next_probe - now)
    assert waits == sorted(waits)
    assert waits[-1] == 30.0


def test_what_still_ran_when_it_opened_does_not_delay_the_first_probe() -> None:
    breaker = broken(now=100.0)
    breaker.fail(b"straggler", 100.2)

    assert breaker.next_probe == 100.5


def test_the_first_success_ends_the_outage() -> None:
    breaker = broken()

    assert breaker.succeed()
    assert not breaker.is_open
    assert breaker.failures == 0
    assert not breaker.succeed(), "it ended already"


def test_the_next_outage_starts_with_a_short_interval_again() -> None:
    breaker = broken(now=0.0)
    for _ in range(5):
        breaker.fail(b"probe", breaker.next_probe)
    breaker.succeed()
    for number in range(3):
        breaker.fail(bytes([number]), 1000.0)

    assert breaker.next_probe == 1000.5


def test_what_a_handler_asks_for_puts_the_next_probe_off_and_nothing_else() -> None:
    breaker = broken(now=100.0)
    breaker.wait(100.5)
    breaker.wait(101.0)

    assert breaker.next_probe == 101.5
    assert breaker.is_open


def test_as_many_as_began_it_are_an_outage_however_often_they_were_tried() -> None:
    breaker = broken(threshold=3)
    breaker.judge(3, tried=True)

    assert not breaker.only_poison


def test_fewer_that_were_not_all_tried_to_the_end_may_still_be_an_outage() -> None:
    breaker = broken(threshold=3)
    breaker.judge(2, tried=False)

    assert not breaker.only_poison


def test_fewer_that_were_all_tried_to_the_end_are_poison_and_go_one_by_one() -> None:
    breaker = broken(threshold=3, now=100.0)
    breaker.judge(2, tried=True)
    assert breaker.only_poison
    assert not breaker.give_up()
    assert breaker.is_open
    assert not breaker.only_poison, "the next probe shows what is left"

    breaker.judge(1, tried=True)
    assert breaker.give_up()
    assert not breaker.is_open
    assert breaker.fail(b"next", 200.0), "nothing has succeeded since: at once again"
