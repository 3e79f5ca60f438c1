"""Sums over processes that come and go."""

from __future__ import annotations

from worker.supervisor.totals import Totals, gauges


def test_counters_go_on_where_a_process_ends() -> None:
    totals = Totals()
    living = [{"received": 5}, {"received": 7, "acked": 2}]
    before = totals.counters(living)

    totals.departed(living.pop())

    assert before == {"received": 12, "acked": 2}
    assert totals.counters(living) == before
    assert totals.counters([*living, {"received": 1}]) == {"received": 13, "acked": 2}


def test_gauges_are_what_the_living_say_and_counters_are_not_among_them() -> None:
    living: list[dict[str, object]] = [
        {"received": 5, "in_flight": 1, "connected": True, "outages": ["a"], "idle": True},
        {"received": 7, "in_flight": 2, "connected": False},
    ]

    assert gauges(living) == {"in_flight": 3, "connected": 1}
