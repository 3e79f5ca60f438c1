"""Lanes keep the order of a key, run one thing of it at a time, and starve nobody."""

from __future__ import annotations

from dataclasses import dataclass

from worker.sharding.lanes import Lanes, Run


@dataclass(eq=False)
class Job:
    """A message at a handler, as far as lanes care."""

    label: str
    handler_name: str = "on"
    is_async: bool = False


ALL = 1000


def lanes_with(*jobs: tuple[str, str | None], shard: int = 0) -> Lanes[Job]:
    """Return lanes that hold (label, key) jobs of one handler, in this order."""
    lanes: Lanes[Job] = Lanes()
    for label, key in jobs:
        lanes.add(Job(label), key, shard)
    return lanes


def labels(runs: list[Run[Job]]) -> list[list[str]]:
    return [[job.label for job in run.tasks] for run in runs]


def probe_of(lanes: Lanes[Job], handler: str) -> Run[Job]:
    """Take the next probe of a handler that has one."""
    probe = lanes.take_probe(handler)
    assert probe is not None
    return probe


def run_out(lanes: Lanes[Job]) -> list[str]:
    """Run everything that can be run, one job at a time, and return the labels in order."""
    seen = []
    while runs := lanes.take(1, 1):
        seen += [job.label for job in runs[0].tasks]
        lanes.finish(runs[0].lane)
    return seen


class TestOrder:
    def test_a_key_is_handed_out_in_the_order_of_arrival(self) -> None:
        lanes = lanes_with(("1", "a"), ("2", "a"), ("3", "a"))

        assert labels(lanes.take(ALL, ALL)) == [["1", "2", "3"]]

    def test_a_key_has_one_run_out_at_a_time(self) -> None:
        lanes = lanes_with(("1", "a"))
        (run,) = lanes.take(ALL, ALL)
        lanes.add(Job("2"), "a", 0)

        assert lanes.take(ALL, ALL) == []
        lanes.finish(run.lane)
        assert labels(lanes.take(ALL, ALL)) == [["2"]]

    def test_different_keys_run_at_the_same_time(self) -> None:
        lanes = lanes_with(("1", "a"), ("2", "b"), ("3", "a"))

        assert labels(lanes.take(ALL, ALL)) == [["1", "3"], ["2"]]

    def test_messages_without_a_key_wait_for_nobody(self) -> None:
        lanes = lanes_with(("1", None), ("2", None))

        assert labels(lanes.take(ALL, ALL)) == [["1"], ["2"]]

    def test_the_handlers_of_a_keyless_message_take_turns(self) -> None:
        lanes: Lanes[Job] = Lanes()
        lanes.add_together([Job("m@one", "one"), Job("m@two", "two")], None, 0)

        (run,) = lanes.take(ALL, 1)
        assert labels([run]) == [["m@one"]]
        assert lanes.take(ALL, 1) == []
        lanes.finish(run.lane)
        assert labels(lanes.take(ALL, 1)) == [["m@two"]]

    def test_what_comes_back_unfinished_goes_to_the_front_in_its_order(self) -> None:
        lanes = lanes_with(("1", "a"), ("2", "a"), ("3", "a"), ("4", "a"))
        (run,) = lanes.take(ALL, 3)
        lanes.finish(run.lane, run.tasks[1:])

        assert run_out(lanes) == ["2", "3", "4"]

    def test_a_run_is_of_one_kind_since_it_goes_to_one_pool(self) -> None:
        lanes: Lanes[Job] = Lanes()
        lanes.add(Job("1"), "a", 0)
        lanes.add(Job("2", "coroutine", is_async=True), "a", 0)
        lanes.add(Job("3"), "a", 0)

        (run,) = lanes.take(ALL, ALL)
        assert labels([run]) == [["1"]]
        lanes.finish(run.lane)
        assert labels(lanes.take(ALL, ALL)) == [["2"]]

    def test_a_run_is_no_longer_than_asked_and_all_runs_fit_the_room(self) -> None:
        lanes = lanes_with(*((f"a{n}", "a") for n in range(9)), *((f"b{n}", "b") for n in range(9)))

        assert labels(lanes.take(5, 3)) == [["a0", "a1", "a2"], ["b0", "b1"]]


class TestHolds:
    def test_a_held_handler_waits_in_its_lane_until_resume(self) -> None:
        lanes = lanes_with(("1", "a"), ("2", "a"), ("3", "b"))
        (run,) = lanes.take(2, ALL)
        lanes.hold(run.lane, "on")
        lanes.finish(run.lane, run.tasks)

        assert run_out(lanes) == ["3"]
        lanes.resume(run.lane, "on")
        assert run_out(lanes) == ["1", "2"]

    def test_other_handlers_of_the_key_go_on_meanwhile(self) -> None:
        lanes: Lanes[Job] = Lanes()
        for number in (1, 2):
            lanes.add_together([Job(f"{number}@x", "x"), Job(f"{number}@y", "y")], "a", 0)
        (run,) = lanes.take(1, 1)
        lanes.hold(run.lane, "x")
        lanes.finish(run.lane, run.tasks)

        assert run_out(lanes) == ["1@y", "2@y"]
        lanes.resume(run.lane, "x")
        assert run_out(lanes) == ["1@x", "2@x"]

    def test_a_held_task_can_be_taken_alone(self) -> None:
        lanes = lanes_with(("suspect", "a"), ("next", "a"))
        (run,) = lanes.take(1, 1)
        lanes.hold(run.lane, "on")
        lanes.finish(run.lane, run.tasks)

        solo = lanes.take_one(run.tasks[0], run.lane)
        assert solo is not None
        assert labels([solo]) == [["suspect"]]
        assert lanes.take_one(run.tasks[0], run.lane) is None

    def test_a_lane_whose_only_task_was_taken_alone_harms_nobody(self) -> None:
        lanes = lanes_with(("suspect", "a"))
        (run,) = lanes.take(1, 1)
        lanes.hold(run.lane, "on")
        lanes.finish(run.lane, run.tasks)
        lanes.resume(run.lane, "on")
        solo = lanes.take_one(run.tasks[0], run.lane)
        assert solo is not None

        lanes.finish(solo.lane)
        lanes.add(Job("other"), "b", 0)
        assert run_out(lanes) == ["other"]

    def test_while_a_task_is_out_alone_its_lane_hands_out_nothing_else(self) -> None:
        lanes = lanes_with(("suspect", "a"), ("next", "a"))
        (run,) = lanes.take(1, 1)
        lanes.hold(run.lane, "on")
        lanes.finish(run.lane, run.tasks)
        lanes.resume(run.lane, "on")
        solo = lanes.take_one(run.tasks[0], run.lane)
        assert solo is not None

        assert lanes.take(ALL, ALL) == []
        lanes.finish(solo.lane)
        assert run_out(lanes) == ["next"]


class TestOutages:
    def test_a_blocked_handler_gets_one_probe_at_a_time(self) -> None:
        lanes = lanes_with(("1", "a"), ("2", "b"))
        lanes.block("on")

        assert lanes.take(ALL, ALL) == []
        assert labels([probe_of(lanes, "on")]) == [["1"]]

    def test_other_handlers_of_the_same_messages_go_on(self) -> None:
        lanes: Lanes[Job] = Lanes()
        lanes.block("mail")
        for number in (1, 2):
            lanes.add_together(
                [Job(f"{number}@mail", "mail"), Job(f"{number}@book", "book")], "a", 0
            )

        assert run_out(lanes) == ["1@book", "2@book"]
        lanes.unblock("mail")
        assert run_out(lanes) == ["1@mail", "2@mail"]

    def test_a_probe_is_the_first_of_its_handler_in_its_lane(self) -> None:
        lanes: Lanes[Job] = Lanes()
        lanes.add(Job("1@book", "book"), "a", 0)
        lanes.add(Job("1@mail", "mail"), "a", 0)
        lanes.add(Job("2@mail", "mail"), "a", 0)
        lanes.block("mail")
        (run,) = lanes.take(ALL, ALL)
        lanes.hold(run.lane, "book")
        lanes.finish(run.lane, run.tasks)
        lanes.take(ALL, ALL)

        assert labels([probe_of(lanes, "mail")]) == [["1@mail"]]

    def test_a_run_leaves_what_waits_behind_it_untouched(self) -> None:
        """Who copies a long lane for every run of it comes to a standstill in an outage."""
        lanes = lanes_with(*((f"{number}", "a") for number in range(3)))
        lanes.block("another")
        lanes.add(Job("kept", "another"), "a", 0)
        lanes.add(Job("3"), "a", 0)
        ((lane, _),) = lanes.waiting_for("another")
        before = lane.tasks

        assert labels(lanes.take(ALL, 2)) == [["0", "1"]]
        lanes.finish(lane)
        assert labels(lanes.take(ALL, 2)) == [["2", "3"]]
        lanes.finish(lane)
        assert lane.tasks is before
        assert [job.label for job in lane.tasks] == ["kept"]

    def test_two_outages_at_once_are_probed_apart(self) -> None:
        lanes: Lanes[Job] = Lanes()
        lanes.add_together([Job("m@x", "x"), Job("m@y", "y")], "a", 0)
        lanes.block("x")
        lanes.block("y")
        lanes.take(ALL, ALL)

        assert labels([probe_of(lanes, "y")]) == [["m@y"]]

    def test_nothing_to_probe_is_no_probe(self) -> None:
        lanes: Lanes[Job] = Lanes()
        lanes.block("on")

        assert lanes.take_probe("on") is None

    def test_after_a_probe_that_failed_the_message_is_probed_again(self) -> None:
        lanes = lanes_with(("1", "a"))
        lanes.block("on")
        lanes.take(ALL, ALL)
        probe = probe_of(lanes, "on")
        lanes.finish(probe.lane, probe.tasks)
        lanes.take(ALL, ALL)

        assert labels([probe_of(lanes, "on")]) == [["1"]]

    def test_the_probe_is_the_one_that_ranks_highest_of_the_first_in_their_lanes(self) -> None:
        lanes = lanes_with(("1", "a"), ("9", "a"), ("2", "b"), ("3", None), ("0", None))
        lanes.block("on")
        lanes.take(ALL, ALL)

        seen = []
        while (probe := lanes.take_probe("on", lambda job: int(job.label))) is not None:
            seen += [job.label for job in probe.tasks]
        assert seen == ["3", "2", "1", "0"]

    def test_of_equals_the_probe_is_the_one_that_waits_longest(self) -> None:
        lanes = lanes_with(("1", "a"), ("2", "b"))
        lanes.block("on")
        seen = []
        for _ in range(4):
            lanes.take(ALL, ALL)
            probe = probe_of(lanes, "on")
            lanes.finish(probe.lane, probe.tasks)
            seen += [job.label for job in probe.tasks]

        assert seen == ["1", "2", "1", "2"]

    def test_what_waits_for_a_handler_is_found_wherever_it_waits(self) -> None:
        lanes = lanes_with(("held", None), ("running", "a"), ("behind", "a"), ("held too", "b"))
        for run in lanes.take(ALL, 1):
            if run.tasks[0].label != "running":
                lanes.hold(run.lane, "on")
                lanes.finish(run.lane, run.tasks)
        lanes.block("on")
        lanes.add(Job("blocked"), None, 1)
        lanes.take(ALL, ALL)
        lanes.add(Job("ready"), None, 2)
        lanes.add(Job("other", "off"), "b", 0)

        found = sorted(job.label for _, jobs in lanes.waiting_for("on") for job in jobs)
        assert found == ["behind", "blocked", "held", "held too", "ready"]


class TestFairness:
    def test_shards_take_turns(self) -> None:
        lanes: Lanes[Job] = Lanes()
        for number in range(3):
            lanes.add(Job(f"busy{number}"), f"k{number}", 0)
        lanes.add(Job("quiet"), "k", 1)

        assert labels(lanes.take(2, 1)) == [["busy0"], ["quiet"]]

    def test_a_long_lane_lets_the_others_of_its_shard_go_first(self) -> None:
        lanes = lanes_with(*((f"a{n}", "a") for n in range(5)), ("b", "b"))
        (run,) = lanes.take(1, 1)
        lanes.finish(run.lane)

        assert labels(lanes.take(1, 1)) == [["b"]]


class TestClear:
    def test_clear_forgets_what_waits_and_tells_how_much(self) -> None:
        lanes = lanes_with(("1", "a"), ("2", "b"), ("3", None))

        assert lanes.clear() == 3
        assert lanes.waiting == 0
        assert lanes.take(ALL, ALL) == []

    def test_what_arrives_after_clear_waits_for_the_run_that_is_out(self) -> None:
        lanes = lanes_with(("old", "a"))
        (run,) = lanes.take(ALL, ALL)
        lanes.clear()
        lanes.add(Job("new"), "a", 0)

        assert lanes.take(ALL, ALL) == []
        lanes.finish(run.lane)
        assert run_out(lanes) == ["new"]

    def test_a_keyless_message_that_runs_takes_its_other_handlers_along(self) -> None:
        lanes: Lanes[Job] = Lanes()
        lanes.add_together([Job("m@x", "x"), Job("m@y", "y")], None, 0)
        (run,) = lanes.take(1, 1)

        assert lanes.clear() == 1
        lanes.finish(run.lane)
        assert lanes.take(ALL, ALL) == []
        assert lanes.waiting == 0

    def test_an_outage_goes_on_after_clear(self) -> None:
        lanes = lanes_with(("1", "a"))
        lanes.block("on")
        lanes.clear()
        lanes.add(Job("2"), "a", 0)

        assert lanes.take(ALL, ALL) == []
        lanes.unblock("on")
        assert run_out(lanes) == ["2"]


class TestClearShard:
    def test_it_forgets_what_waits_of_the_shard_and_nothing_else(self) -> None:
        lanes: Lanes[Job] = Lanes()
        lanes.add(Job("leaves"), "a", 1)
        lanes.add(Job("stays"), "b", 0)
        lanes.add(Job("leaves too"), None, 1)
        lanes.add(Job("stays too"), None, 2)

        lanes.clear_shard(1)

        assert lanes.waiting == 2
        assert lanes.is_idle("a", 1)
        assert run_out(lanes) == ["stays", "stays too"]

    def test_a_key_of_two_shards_has_two_lanes(self) -> None:
        lanes: Lanes[Job] = Lanes()
        lanes.add(Job("leaves"), "k", 0)
        lanes.add(Job("stays"), "k", 1)

        lanes.clear_shard(0)

        assert lanes.is_idle("k", 0)
        assert not lanes.is_idle("k", 1)
        assert lanes.waiting == 1
        assert run_out(lanes) == ["stays"]
        assert len(lanes) == 0

    def test_what_is_out_comes_back_to_nothing(self) -> None:
        lanes: Lanes[Job] = Lanes()
        for name in ("1", "2"):
            lanes.add(Job(name), "a", 1)
        (run,) = lanes.take(1, 1)

        lanes.clear_shard(1)
        assert not lanes.is_idle("a", 1), "a run of it is out"
        lanes.finish(run.lane)

        assert lanes.is_idle("a", 1)
        assert len(lanes) == 0
        assert lanes.waiting == 0

    def test_a_keyless_message_that_runs_takes_its_other_handlers_along(self) -> None:
        lanes: Lanes[Job] = Lanes()
        lanes.add_together([Job("m@x", "x"), Job("m@y", "y")], None, 1)
        (run,) = lanes.take(1, 1)

        lanes.clear_shard(1)
        lanes.finish(run.lane)

        assert lanes.take(ALL, ALL) == []
        assert lanes.waiting == 0

    def test_a_hold_ends_with_the_shard_and_its_late_end_wakes_nothing(self) -> None:
        lanes: Lanes[Job] = Lanes()
        lanes.add(Job("1"), "a", 1)
        (run,) = lanes.take(ALL, ALL)
        lanes.hold(run.lane, "on")
        lanes.finish(run.lane, run.tasks)

        lanes.clear_shard(1)
        assert lanes.is_idle("a", 1)
        lanes.add(Job("again"), "a", 1)  # it was taken once more
        assert run_out(lanes) == ["again"]
        lanes.resume(run.lane, "on")

        assert lanes.take(ALL, ALL) == []
        assert len(lanes) == 0

    def test_an_outage_goes_on_and_probes_what_is_left(self) -> None:
        lanes: Lanes[Job] = Lanes()
        lanes.block("on")
        lanes.add(Job("leaves"), "a", 1)
        lanes.add(Job("stays"), "b", 0)
        assert lanes.take(ALL, ALL) == []

        lanes.clear_shard(1)

        probe = probe_of(lanes, "on")
        assert [job.label for job in probe.tasks] == ["stays"]
        assert lanes.waiting == 0

    def test_the_others_still_take_turns(self) -> None:
        lanes: Lanes[Job] = Lanes()
        for shard in range(3):
            for number in range(2):
                lanes.add(Job(f"{shard}.{number}"), f"k{shard}.{number}", shard)

        lanes.clear_shard(1)

        assert labels(lanes.take(4, 1)) == [["0.0"], ["2.0"], ["0.1"], ["2.1"]]
        assert not lanes.has_ready


def test_an_idle_key_leaves_nothing_behind() -> None:
    lanes = lanes_with(("1", "a"))
    assert not lanes.is_idle("a", 0)
    (run,) = lanes.take(ALL, ALL)
    assert not lanes.is_idle("a", 0)
    lanes.finish(run.lane)

    assert lanes.is_idle("a", 0)
    assert len(lanes) == 0


class TestOneThatWaitsAlone:
    def test_a_lane_whose_only_hold_is_withdrawn_is_held_no_longer(self) -> None:
        lanes = lanes_with(("1", "a"), ("2", "a"))
        lane = lanes.find("a", 0)
        assert lane is not None
        first = lane.tasks[0]
        lanes.hold(lane, first)
        assert [*lanes.held] == [lane]

        assert lanes.withdraw(lane, lambda job: job is first) == [first]
        assert [*lanes.held] == []
        assert run_out(lanes) == ["2"]

    def test_a_lane_is_idle_where_all_of_it_waits_for_what_comes(self) -> None:
        lanes = lanes_with(("1", "a"), ("2", "a"))
        lane = lanes.find("a", 0)
        assert lane is not None
        first, second = lane.tasks
        lanes.hold(lane, first)
        assert not lanes.is_idle("a", 0)
        lanes.hold(lane, second)
        assert lanes.is_idle("a", 0)
        lanes.hold(lane, "on")
        assert not lanes.is_idle("a", 0)
