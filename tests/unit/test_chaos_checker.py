"""The judge of several supervisors sees every kind of broken promise, and what explains what."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from typing import Any

from chaos.checker import Case, check
from chaos.executions import Execution, Fault, Kind, faults, gaps, join, owners
from chaos.findings import Findings
from chaos.history import Entry
from chaos.story import story

ALICE, BOB = 11, 22  # two processes, each of a supervisor of its own
NAMES = {ALICE: "alice", BOB: "bob"}


def ran(  # noqa: PLR0913 - what a row of the ledger tells
    sequence: int,
    pid: int,
    begin: float,
    end: float | None,
    *,
    key: str = "a",
    shard: int = 0,
    fence: int = 1,
) -> Execution:
    """Return an execution of the handler ``h``; the id is that of key and sequence."""
    facts: dict[str, Any] = {"handler": "h", "id": f"{key}#{sequence}", "key": key, "attempt": 1}
    return Execution(
        **facts,
        sequence=sequence,
        shard=shard,
        fence=fence,
        supervisor=NAMES[pid],
        pid=pid,
        begin=begin,
        effect=end,
        end=end,
    )


def killed(pid: int, at: float) -> Fault:
    return Fault(Kind.KILL, NAMES[pid], at, pids=frozenset({pid}))


def paused(pid: int, since: float, until: float) -> Fault:
    return Fault(Kind.PAUSE, NAMES[pid], since, until, frozenset({pid}))


def judge(executions: Iterable[Execution], *faults: Fault, single_active: bool = False) -> Findings:
    """Judge with everything confirmed that had an effect."""
    executions = list(executions)
    confirmed = {("h", e.id) for e in executions if e.end is not None}
    return check(
        Case(executions=executions, wanted=confirmed, faults=faults, single_active=single_active)
    )


def test_a_shard_that_changes_hands_in_order_is_what_was_promised() -> None:
    found = judge([ran(0, ALICE, 1, 2), ran(1, ALICE, 3, 4), ran(2, BOB, 4, 5, fence=2)])

    assert found.held
    assert found.undisturbed
    assert found.summary == "3 executions, 3 effects"


def test_what_was_confirmed_and_has_no_effect_at_one_of_the_handlers_is_lost() -> None:
    wanted = {*product(["h", "g"], ["a#0", "a#1"])}
    found = check(Case(executions=[ran(0, ALICE, 1, 2)], wanted=wanted))

    assert found.lost == ["g a#0", "g a#1", "h a#1"]
    assert not found.held


def test_what_began_and_was_killed_is_lost_until_somebody_else_does_it() -> None:
    broken_off = ran(0, ALICE, 1, None)

    case = Case(executions=[broken_off], wanted={("h", "a#0")}, faults=[killed(ALICE, 1.5)])
    assert check(case).lost
    found = judge([broken_off, ran(0, BOB, 2, 3, fence=2)], killed(ALICE, 1.5))
    assert found.held
    assert found.broken_off == [broken_off]
    assert not found.undisturbed


def test_a_handler_that_ends_without_effect_though_nothing_happened_to_it_is_told() -> None:
    found = judge([ran(0, ALICE, 1, None), ran(0, ALICE, 2, 3)])

    assert len(found.unfinished) == 1
    assert not found.held


def test_a_second_effect_that_nothing_explains_is_a_broken_promise() -> None:
    twice = [ran(0, ALICE, 1, 2), ran(0, BOB, 3, 4, fence=2)]

    assert judge(twice).repeated == [tuple(twice)]
    assert not judge(twice).held


def test_a_second_effect_is_explained_by_the_kill_of_who_had_the_first() -> None:
    twice = [ran(0, ALICE, 1, 2), ran(0, BOB, 3, 4, fence=2)]

    found = judge(twice, killed(ALICE, 2.1))

    assert found.held
    assert found.explained == [tuple(twice)]
    assert "second effects that a fault explains: 1" in found.summary


def test_a_kill_of_another_or_before_or_long_after_the_effect_explains_no_second_one() -> None:
    twice = [ran(0, ALICE, 10, 11), ran(0, BOB, 20, 21, fence=2)]

    for fault in (killed(BOB, 11.1), killed(ALICE, 10.5), killed(ALICE, 15), killed(ALICE, 20.5)):
        assert judge(twice, fault).repeated, fault


def test_a_pause_explains_a_second_effect_only_of_who_lost_the_shard_by_it() -> None:
    sleeper = ran(0, ALICE, 1, 9)
    other = ran(0, BOB, 5, 6, fence=2)

    assert judge([sleeper, other], paused(ALICE, 2, 8)).explained == [(other, sleeper)]
    assert judge([sleeper, other], paused(BOB, 2, 8)).repeated
    later = [ran(0, ALICE, 1, 2), ran(0, BOB, 5, 6)]
    assert judge(later, paused(ALICE, 2.1, 4)).repeated, "with the same fence it lost nothing"


def test_a_cut_explains_a_second_effect_that_could_not_be_recorded() -> None:
    twice = [ran(0, ALICE, 1, 2), ran(0, BOB, 9, 10, fence=2)]

    assert judge(twice, Fault(Kind.CUT, "alice", 1.9, 8)).held
    assert judge(twice, Fault(Kind.CUT, "alice", 5, 8)).repeated


def test_an_effect_that_overtook_its_predecessor_is_out_of_order() -> None:
    found = judge([ran(1, ALICE, 1, 2), ran(0, ALICE, 3, 4)])

    assert [execution.sequence for execution in found.out_of_order] == [1, 0]


def test_a_sequence_number_that_is_missing_shows_in_the_order() -> None:
    assert judge([ran(0, ALICE, 1, 2), ran(2, ALICE, 3, 4)]).out_of_order


def test_several_effects_are_repeated_in_order_after_a_kill() -> None:
    before = [ran(n, ALICE, n, n + 0.5) for n in range(3)]
    again = [ran(n, BOB, n + 5, n + 5.5, fence=2) for n in (1, 2, 3)]

    assert judge(before + again, killed(ALICE, 2.5)).held is True
    assert judge(before + again[:1], killed(ALICE, 2.5)).out_of_order == again[:1]
    assert judge([*before, again[0], again[2]], killed(ALICE, 2.5)).out_of_order == [again[2]]


def test_keys_and_handlers_have_sequences_of_their_own() -> None:
    assert judge([ran(0, ALICE, 1, 2), ran(0, ALICE, 3, 4, key="b")]).held


def test_two_handlers_of_a_key_at_once_are_a_broken_promise() -> None:
    found = judge([ran(0, ALICE, 1, 3), ran(1, ALICE, 2, 4)])

    assert len(found.key_overlaps) == 1
    assert found.owner_overlaps == []


def test_two_processes_of_a_shard_at_once_are_a_broken_promise_whatever_the_fence() -> None:
    for fence in (1, 2):
        found = judge([ran(0, ALICE, 1, 3), ran(0, BOB, 2, 4, key="b", fence=fence)])

        assert len(found.owner_overlaps) == 1
        assert found.stale == []
        assert not found.held


def test_two_processes_of_two_shards_at_once_are_what_shards_are_for() -> None:
    parallel = [ran(0, ALICE, 1, 3), ran(0, BOB, 2, 4, key="b", shard=1)]

    assert judge(parallel).held


def test_with_single_active_two_processes_at_once_are_a_broken_promise_on_any_shard() -> None:
    parallel = [ran(0, ALICE, 1, 3), ran(0, BOB, 2, 4, key="b", shard=1)]

    assert judge(parallel, single_active=True).owner_overlaps == [tuple(parallel)]


def test_who_slept_beyond_its_lease_is_stale_and_told() -> None:
    sleeper = ran(0, ALICE, 1, 9)
    others = [ran(0, BOB, 5, 6, fence=2), ran(1, BOB, 7, 8, fence=2)]

    found = judge([sleeper, *others], paused(ALICE, 2, 8.5))

    assert found.held
    assert found.stale == [(sleeper, others[0])]
    assert "handlers that outlived their lease: 1" in found.summary


def test_what_a_sleeper_alone_did_belongs_to_the_order_of_its_key() -> None:
    sleeper = ran(0, ALICE, 1, 9)
    others = [ran(0, BOB, 5, 6, key="b", fence=2), ran(1, BOB, 9.5, 10, fence=2)]

    assert judge([sleeper, *others], paused(ALICE, 2, 8.5)).held


def test_who_slept_and_has_no_lower_fence_is_no_excuse() -> None:
    pair = [ran(0, ALICE, 1, 9, fence=2), ran(0, BOB, 5, 6, key="b", fence=2)]

    assert judge(pair, paused(ALICE, 2, 8)).owner_overlaps


def test_a_pause_of_the_newer_owner_is_no_excuse_for_the_older_one() -> None:
    pair = [ran(0, ALICE, 1, 9), ran(0, BOB, 5, 6, key="b", fence=2)]

    assert judge(pair, paused(BOB, 2, 8)).owner_overlaps


def test_what_a_pause_before_its_beginning_left_over_is_no_excuse() -> None:
    pair = [ran(0, ALICE, 4, 9), ran(0, BOB, 5, 6, key="b", fence=2)]

    assert judge(pair, paused(ALICE, 2, 3)).owner_overlaps


def test_what_was_killed_ends_with_its_process() -> None:
    killed_first = [ran(0, ALICE, 1, None), ran(0, BOB, 5, 6, key="b", fence=2)]

    assert judge(killed_first, killed(ALICE, 2)).owner_overlaps == []
    assert judge(killed_first, killed(ALICE, 5.5)).owner_overlaps


def test_a_fence_that_falls_is_a_broken_promise_even_of_a_sleeper() -> None:
    rows = [ran(0, BOB, 1, 2, fence=2), ran(1, ALICE, 3, 4, fence=1)]

    assert judge(rows).fallen_fences == [tuple(rows)]
    assert not judge(rows, paused(ALICE, 0.5, 2.5)).held


def test_shards_have_fences_of_their_own() -> None:
    assert judge([ran(0, BOB, 1, 2, fence=2), ran(0, BOB, 3, 4, key="b", shard=1, fence=1)]).held


def test_a_story_of_many_faults_stays_readable() -> None:
    found = check(Case(executions=[], wanted={("h", f"a#{n}") for n in range(100)}))

    assert "lost: 100" in found.summary
    assert len(found.summary.splitlines()) < 10


def test_the_lines_of_a_ledger_become_executions() -> None:
    def line(what: str, number: int, pid: int, at: float) -> Entry:
        return Entry(
            what=what,
            at=at,
            pid=pid,
            id=f"a#{number}",
            key="a",
            sequence=number,
            handler="h",
            attempt=1,
            shard=3,
            fence=7,
            supervisor="alice",
        )

    found = join(
        [
            line("begin", 0, ALICE, 1.0),
            line("begin", 0, BOB, 2.0),
            line("effect", 0, BOB, 2.5),
            line("effect", 0, ALICE, 3.0),
            line("begin", 1, ALICE, 4.0),
            line("begin", 1, ALICE, 5.0),
            line("effect", 1, ALICE, 6.0),
            line("begin", 2, ALICE, 7.0),
        ]
    )

    times = [(e.sequence, e.pid, e.begin, e.end) for e in found]
    assert times == [
        (0, ALICE, 1.0, 3.0),
        (0, BOB, 2.0, 2.5),
        (1, ALICE, 4.0, None),
        (1, ALICE, 5.0, 6.0),
        (2, ALICE, 7.0, None),
    ]
    assert (found[0].shard, found[0].fence, found[0].supervisor) == (3, 7, "alice")


def test_gaps_are_times_without_a_begin() -> None:
    begins = [1.0, 2.0, 3.0, 7.0, 8.0]
    one = [ran(n, ALICE, at, at) for n, at in enumerate(begins)]
    other = [ran(0, BOB, at, at, shard=1) for at in (1.0, 6.5)]

    assert gaps(one, 2.5, 2.9) == {0: 1.0}
    assert gaps(one, 2.5, 3.5) == {0: 4.0}
    assert gaps(one + other, 4.0, 5.0) == {0: 4.0, 1: 5.5}
    assert gaps(other, 6.0, 10.0) == {1: 5.5}
    assert gaps(other, 6.6, 10.0) == {1: 3.5}, "it is not yet known for how long it lasts"


def test_the_owner_is_who_began_last() -> None:
    rows = [ran(1, BOB, 2, 3, fence=2), ran(0, ALICE, 1, 9), ran(0, ALICE, 4, 5, shard=1)]

    assert owners(rows) == {0: "bob", 1: "alice"}


def outage(since: float, until: float) -> Fault:
    return Fault(Kind.OUTAGE, "", since, until)


def test_a_kill_explains_what_could_not_be_recorded_since_an_outage_began() -> None:
    twice = [ran(0, ALICE, 1, 2), ran(0, BOB, 9, 10, fence=2)]

    assert judge(twice, killed(ALICE, 7)).repeated
    assert judge(twice, killed(ALICE, 7), outage(1.5, 7)).held
    assert judge(twice, killed(ALICE, 7), outage(1.5, 4)).repeated, "it had time to record it"
    assert judge(twice, outage(1.5, 7)).repeated, "it could record it after that"


def test_so_does_a_kill_of_who_was_cut_off_from_the_store() -> None:
    twice = [ran(0, ALICE, 1, 2), ran(0, BOB, 9, 10)]
    cut = Fault(Kind.CUT, "alice", 1.5, 7)

    assert judge(twice, killed(ALICE, 7), cut).held
    assert judge(twice, killed(ALICE, 7), replace(cut, until=4)).repeated, "it had time"
    assert judge(twice, killed(ALICE, 7), replace(cut, supervisor="bob")).repeated
    assert judge(twice, cut).repeated, "it could record it after that"


def test_what_a_store_forgot_may_be_done_again_and_nothing_later() -> None:
    twice = [ran(0, ALICE, 1, 2), ran(0, BOB, 9, 10, fence=2)]
    forgot = Fault(Kind.AMNESIA, "", 5, 6)

    assert judge(twice, forgot).held
    assert judge(twice, replace(forgot, since=11, until=12)).repeated
    assert judge(twice, replace(forgot, since=0, until=1)).repeated


def test_where_effect_and_memory_are_one_transaction_nothing_explains_a_second_effect() -> None:
    twice = [ran(0, ALICE, 1, 2), ran(0, BOB, 3, 4, fence=2)]
    case = Case(executions=twice, wanted=(), faults=[killed(ALICE, 2.1)])

    assert check(case).held
    assert check(replace(case, transactional=True)).repeated == [tuple(twice)]


def test_what_was_set_aside_is_accounted_for_and_leaves_a_gap_in_the_order() -> None:
    ran_around = [ran(0, ALICE, 1, 2), ran(2, ALICE, 3, 4)]
    wanted = {("h", f"a#{n}") for n in range(3)}
    published = {f"a#{n}": ("a", n) for n in range(3)}
    case = Case(executions=ran_around, wanted=wanted, published=published)

    assert (check(case).lost, len(check(case).out_of_order)) == (["h a#1"], 1)
    assert check(replace(case, set_aside=[("h", "a#1")])).held
    assert check(replace(case, set_aside=[("", "a#1")])).held, "for every handler"
    assert check(replace(case, set_aside=[("g", "a#1")])).lost == ["h a#1"]


def test_what_is_done_and_set_aside_needs_a_fault_to_explain_it() -> None:
    case = Case(executions=[ran(0, ALICE, 1, 2)], wanted=(), set_aside=[("h", "a#0")])

    assert check(case).twofold
    assert check(replace(case, faults=[killed(BOB, 2.1)])).twofold
    assert check(replace(case, faults=[killed(ALICE, 2.1)])).held


def test_what_nobody_heard_of_may_be_missing_but_nothing_else() -> None:
    ran_around = [ran(0, ALICE, 1, 2), ran(2, ALICE, 3, 4)]
    case = Case(executions=ran_around, wanted=())

    assert check(replace(case, optional={("a", 1)})).held
    assert check(replace(case, optional={("b", 1)})).out_of_order


def test_a_handler_that_fails_has_ended() -> None:
    facts: dict[str, Any] = {"pid": ALICE, "handler": "h", "id": "a#0", "key": "a", "sequence": 0}
    (failed,) = join([Entry(what="begin", at=1, **facts), Entry(what="failed", at=2, **facts)])

    assert (failed.effect, failed.end) == (None, 2)
    assert check(Case(executions=[failed], wanted=())).held


def test_a_fault_is_read_as_it_was_written() -> None:
    for fault in (killed(ALICE, 1), paused(BOB, 1, 2), outage(1, 2)):
        assert faults([Entry(what="fault", at=1, detail=fault.dump())]) == [fault]


def test_the_story_of_a_key_tells_what_happened_around_it_and_no_more() -> None:
    def line(what: str, number: int, at: float, **facts: Any) -> Entry:
        return Entry(what=what, at=at, id=f"a#{number}", key="a", sequence=number, **facts)

    pid = {"pid": ALICE, "handler": "h", "supervisor": "alice"}
    entries = [
        *(line("invoke", n, n) for n in range(6)),
        *(line("begin", n, 10 + n, **pid) for n in (2, 4)),
        *(line("effect", n, 10.5 + n, **pid) for n in (2, 4)),
    ]
    found = Findings(out_of_order=[e for e in join(entries) if e.sequence == 4])
    told = "\n".join(story(found, entries, [killed(ALICE, 15), killed(BOB, 15)]))

    assert "out of order: 1" in told
    assert "invoke    a#3" in told
    assert "a#1" not in told
    assert "kill -9: alice pid 11" in told
    assert "bob" not in told


def test_what_nobody_was_killed_by_excuses_no_handler_without_an_end() -> None:
    broken_off = ran(0, ALICE, 1, None)
    others = [outage(0.5, 2), Fault(Kind.OTHER, "", 0.5, 2), Fault(Kind.AMNESIA, "", 0.5, 2)]

    assert check(Case(executions=[broken_off], wanted=(), faults=others)).unfinished
    assert check(Case(executions=[broken_off], wanted=(), faults=[killed(ALICE, 0.5)])).unfinished
    assert check(Case(executions=[broken_off], wanted=(), faults=[killed(ALICE, 0.9)])).held, (
        "who notes its own death goes on for a moment"
    )


def test_what_began_as_its_process_died_does_not_run_on() -> None:
    pair = [ran(0, ALICE, 1, None), ran(0, BOB, 5, 6, key="b", fence=2)]

    assert judge(pair, killed(ALICE, 0.9), Fault(Kind.OTHER, "", 7, 8)).held


def test_a_stop_at_once_takes_a_while() -> None:
    twice = [ran(0, ALICE, 1, 4), ran(0, BOB, 6, 7, fence=2)]
    stopped = Fault(Kind.KILL, "alice", 2, 4.5, frozenset({ALICE}))

    assert judge(twice, stopped).held
    assert judge(twice, replace(stopped, until=3)).repeated
