"""What lies aside needs a reason that the test knows of, whatever the runtime wrote on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from chaos.apps.ledger import DEAD, FLAKY, HOPELESS
from chaos.checker import Case, check
from chaos.executions import Execution, Fault, Kind
from chaos.history import Entry
from chaos.workloads import Bank, Ledger
from judged import ALICE, BOB, killed, outage, paused, ran


def case_of(*executions: Execution, faults: tuple[Fault, ...] = ()) -> Case:
    """Return a case of key a, of which three were published and are wanted."""
    ids = [f"a#{n}" for n in range(3)]
    return Case(
        executions=executions,
        wanted={("h", id_) for id_ in ids},
        published={id_: ("a", n) for n, id_ in enumerate(ids)},
        faults=faults,
    )


def broken_off(pid: int, begin: float) -> Execution:
    return replace(ran(1, pid, begin, None))


def crashed(case: Case, says: str = "crashed the worker: 3 times", **facts: Any) -> Case:
    """Return the case with a dead letter of the second event that says so."""
    letter = "h", "a#1"
    return replace(case, set_aside=[letter], reasons={letter: says}, **facts)


AROUND = ran(0, ALICE, 1, 2), ran(2, ALICE, 3, 4)
DEAD_LETTER = "dead letter of h: a#1"


def test_a_runtime_that_sets_everything_aside_keeps_no_promise() -> None:
    case = case_of()
    found = check(replace(case, set_aside=sorted(case.wanted)))

    assert found.lost == []
    assert len(found.undeserved) == 3
    assert not found.held


def test_what_was_ordered_to_fail_at_this_handler_may_be_a_dead_letter() -> None:
    case = replace(case_of(*AROUND), set_aside=[("h", "a#1")])

    assert check(case).undeserved == [DEAD_LETTER]
    assert check(replace(case, hopeless={("h", "a#1")})).held
    assert check(replace(case, hopeless={("g", "a#1")})).undeserved == [DEAD_LETTER]
    whole = replace(case, set_aside=[("", "a#1")], hopeless={("h", "a#1")})
    assert check(whole).undeserved == ["dead letter of all handlers: a#1"]


def test_what_its_process_died_of_too_often_may_be_a_dead_letter() -> None:
    runs = [broken_off(ALICE, at) for at in (11, 21, 31)]
    kills = [killed(ALICE, at) for at in (11.5, 21.5, 31.5)]
    case = crashed(case_of(*AROUND, *runs))

    assert check(replace(case, faults=kills)).held
    assert check(replace(case, faults=kills[:2])).undeserved == [DEAD_LETTER]
    assert check(replace(case, faults=kills, crash_limit=4)).undeserved == [DEAD_LETTER]
    others = [*kills[:2], killed(BOB, 31.5)]
    assert check(replace(case, faults=others)).undeserved == [DEAD_LETTER]


def test_a_process_that_was_away_lost_its_claims_as_one_that_died() -> None:
    runs = [broken_off(ALICE, 11), ran(1, ALICE, 21, 29), broken_off(ALICE, 31)]
    faults = killed(ALICE, 11.5), paused(ALICE, 22, 28), killed(ALICE, 31.5)
    case = crashed(case_of(*AROUND, *runs, faults=faults))

    assert check(case).undeserved == []
    away = replace(case, faults=(faults[0], outage(22, 28), faults[2]))
    assert check(away).undeserved == []
    other = Fault(Kind.OTHER, "", 22, 28)
    assert check(replace(case, faults=(faults[0], other, faults[2]))).undeserved == [DEAD_LETTER]


def test_one_death_counts_once_though_it_was_seen_twice() -> None:
    runs = [broken_off(ALICE, 11), broken_off(ALICE, 21)]
    gone = Fault(Kind.GONE, "alice", 21.4, 21.6, frozenset({ALICE}))
    faults = killed(ALICE, 11.5), killed(ALICE, 21.5), gone
    case = crashed(case_of(*AROUND, *runs, faults=faults))

    assert check(case).undeserved == [DEAD_LETTER]


def test_a_process_that_died_may_have_claimed_what_it_did_not_begin() -> None:
    runs = [broken_off(ALICE, 11), broken_off(ALICE, 21), ran(0, ALICE, 31, 31.4, key="b")]
    faults = killed(ALICE, 11.5), killed(ALICE, 21.5), killed(ALICE, 31.5)
    case = crashed(case_of(*AROUND, *runs, faults=faults))

    assert check(case).held
    elsewhere = replace(runs[2], shard=1)
    assert check(replace(case, executions=[*AROUND, *runs[:2], elsewhere])).undeserved


def test_a_letter_that_says_something_else_is_of_no_crash() -> None:
    runs = [broken_off(ALICE, at) for at in (11, 21, 31)]
    case = case_of(*AROUND, *runs, faults=tuple(killed(ALICE, at + 0.5) for at in (11, 21, 31)))

    assert check(crashed(case)).held
    for says in ("", "rejected by the handler: it crashed the worker", "given up early"):
        assert check(crashed(case, says)).undeserved == [DEAD_LETTER], says


def busy(*faults: Fault, **facts: Any) -> Case:
    """Return a case of a dead letter that nobody began, where a process was at work all the time.

    Of the same shard, and another key.
    """
    others = [ran(n, ALICE, 10 + n / 2, 10.1 + n / 2, key="b") for n in range(60)]
    return crashed(case_of(*AROUND, *others, faults=faults), **facts)


KILLS = [killed(ALICE, at) for at in (11.5, 21.5, 31.5)]


def test_what_was_not_sent_yet_nobody_can_have_lost() -> None:
    assert check(busy(*KILLS)).undeserved == []
    assert check(busy(*KILLS, sent={"a#1": 11.0})).undeserved == []
    for sent in (12.0, 100.0):
        assert check(busy(*KILLS, sent={"a#1": sent})).undeserved == [DEAD_LETTER], sent
        child = {"a#1": sent}
        assert check(busy(*KILLS, children=child)).undeserved == [DEAD_LETTER], "a handler sent it"
    assert check(busy(*KILLS, children={"a#1": 11.0})).undeserved == []


def cut(since: float, until: float) -> Fault:
    return Fault(Kind.CUT, "alice", since, until)


def pause(since: float, until: float) -> Fault:
    return paused(ALICE, since, until)


@pytest.mark.parametrize(
    ("absence", "least"),
    [(outage, 1.25), (cut, 0.25), (pause, 2.25)],
    ids=["outage", "cut", "pause"],
)
def test_who_was_away_for_a_moment_lost_no_claim(
    absence: Callable[[float, float], Fault], least: float
) -> None:
    """A claim of 5 s has 2.25 s left at the least; some hear of the store a while later."""

    def three(seconds: float) -> list[Fault]:
        return [absence(at, at + seconds) for at in (12, 22, 32)]

    assert check(busy(*three(0.1))).undeserved == [DEAD_LETTER]
    assert check(busy(*three(least - 0.05))).undeserved == [DEAD_LETTER]
    assert check(busy(*three(least + 0.05))).undeserved == []
    assert check(busy(*three(6), claim_ttl=30)).undeserved == [DEAD_LETTER]
    late = {"a#1": 12 + 0.15}
    assert check(busy(*three(least + 0.05), sent=late)).undeserved == [DEAD_LETTER]


def test_absences_that_follow_one_another_are_one() -> None:
    def three(between: float) -> list[Fault]:
        twice = [(outage(at, at + 0.5), outage(at + 0.5 + between, at + 1)) for at in (12, 22, 32)]
        return [each for both in twice for each in both]

    assert check(busy(*three(0.2))).undeserved == [DEAD_LETTER], "two of half a second each"
    longer = [pause(at + 1, at + 2.5) for at in (12, 22, 32)]
    assert check(busy(*three(0.2), *longer)).undeserved == []
    assert check(busy(*longer)).undeserved == [DEAD_LETTER]
    of_bob = [paused(BOB, at + 1, at + 2.5) for at in (12, 22, 32)]
    assert check(busy(*three(0.2), *of_bob)).undeserved == [DEAD_LETTER]


def test_a_clock_that_jumps_ahead_ends_claims_at_once() -> None:
    def three(kind: Kind, whose: str, what: str) -> list[Fault]:
        return [Fault(kind, whose, at, at + 0.1, what=what) for at in (12, 22, 32)]

    assert check(busy(*three(Kind.CLOCK, "", "redis-clock-ahead"))).undeserved == []
    assert check(busy(*three(Kind.OTHER, "", "clock-ahead"))).undeserved == [], "that of the file"
    alone = three(Kind.OTHER, "alice", "clock-ahead")
    assert check(busy(*alone)).undeserved == [DEAD_LETTER], "the store goes by another"
    late = {"a#1": 12.5}
    ahead = three(Kind.CLOCK, "", "redis-clock-ahead")
    assert check(busy(*ahead, sent=late)).undeserved == [DEAD_LETTER]


def test_a_clock_that_was_set_back_jumps_ahead_as_it_is_healed() -> None:
    back = [Fault(Kind.CLOCK, "", at, at + 5, what="redis-clock-behind") for at in (12, 22, 32)]
    meanwhile = [ran(n, ALICE, at, at + 0.1, key="b") for n, at in enumerate((15, 25, 35))]
    case = crashed(case_of(*AROUND, *meanwhile, faults=tuple(back)))

    assert check(case).undeserved == []
    assert check(replace(case, sent={"a#1": 16.0})).undeserved == []
    assert check(replace(case, sent={"a#1": 18.0})).undeserved == [DEAD_LETTER]


def test_who_lost_its_lease_lost_no_claim_by_that() -> None:
    lapses = [Fault(Kind.LAPSE, "alice", at, at + 6) for at in (12, 22, 32)]

    assert check(busy(*lapses)).undeserved == [DEAD_LETTER]


def test_a_key_is_parked_by_what_was_ordered_to_fail_and_from_there_on() -> None:
    case = replace(case_of(AROUND[0]), parked=[("h", "a#1"), ("", "a#2")])
    ordered = replace(case, hopeless={("h", "a#1")}, parking={"h"})

    assert check(ordered).held
    assert len(check(case).undeserved) == 2
    assert len(check(replace(ordered, parking=())).undeserved) == 2, "it parks no keys"
    early = replace(ordered, parked=[("", "a#0"), *ordered.parked], executions=())
    assert check(early).undeserved == ["parked by an earlier one of its key: a#0"]


def test_a_key_that_nothing_parked_has_nothing_parked() -> None:
    case = replace(case_of(AROUND[0]), parked=[("", "a#1"), ("", "a#2")], parking={"h"})
    other = replace(case, published={**case.published, "b#0": ("b", 0)})

    assert len(check(case).undeserved) == 2
    by_another = replace(other, parked=[("h", "b#0"), *case.parked], hopeless={("h", "b#0")})
    assert len(check(by_another).undeserved) == 2


def invoked(order: str, name: str = "test.step") -> list[Entry]:
    return [Entry(what="invoke", at=1, id="x", detail=name, order=order)]


def test_the_ledger_knows_what_it_ordered() -> None:
    ledger = Ledger(1)
    both = {("ledger.count", "x"), ("ledger.observe", "x")}

    assert ledger.hopeless(invoked(DEAD), {}) == both
    assert ledger.hopeless(invoked(HOPELESS, "test.strict"), {}) == {("ledger.post", "x")}
    assert ledger.hopeless(invoked(""), {}) == set()
    assert Bank(1).hopeless(invoked("", "bank.transfer"), {}) == set()


def test_what_fails_twice_is_given_up_only_where_its_letter_says_that_it_was_too_early() -> None:
    reasons = {("ledger.count", "x"): "given up early, 128 of 256 prefetched messages wait"}

    assert Ledger(1).hopeless(invoked(FLAKY), {}) == set()
    assert Ledger(1).hopeless(invoked(FLAKY), reasons) == {("ledger.count", "x")}
    assert Ledger(1).hopeless(invoked(""), reasons) == set()
