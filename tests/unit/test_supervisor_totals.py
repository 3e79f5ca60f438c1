"""Sums over processes that come and go."""

from __future__ import annotations

from worker.supervisor.totals import Totals, gauges, outages, shards


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


def test_an_outage_is_counted_by_the_processes_that_see_it() -> None:
    assert outages([{"outages": ["mail", "audit"]}, {"outages": ["mail"]}, {}]) == {
        "mail": 2, "audit": 1,
    }  # fmt: skip


def test_a_shard_is_told_of_by_the_process_that_has_it_once_it_told() -> None:
    old = {"generation": 1, "shards": [0], "statistics": {"shards": {"0": {"depth": 7}, "1": {}}}}
    new = {"generation": 2, "shards": [0, 3], "statistics": {"shards": {"0": {"halted": True}}}}
    found = shards([old, new, {"generation": 0, "shards": [], "statistics": {}}])

    assert {place: told.get("depth") for place, told in found.items()} == {(1, 0): 7, (2, 0): None}
    assert found[2, 0]["halted"]
    assert found[1, 0]["unsettled"] == 0
