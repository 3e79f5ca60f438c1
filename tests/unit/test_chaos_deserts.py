"""What lies aside needs a reason that the test knows of, whatever the runtime wrote on it."""

from __future__ import annotations

from dataclasses import replace

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
    case = replace(case_of(*AROUND, *runs), set_aside=[("h", "a#1")])

    assert check(replace(case, faults=kills)).held
    assert check(replace(case, faults=kills[:2])).undeserved == [DEAD_LETTER]
    assert check(replace(case, faults=kills, crash_limit=4)).undeserved == [DEAD_LETTER]
    others = [*kills[:2], killed(BOB, 31.5)]
    assert check(replace(case, faults=others)).undeserved == [DEAD_LETTER]


def test_a_process_that_was_away_lost_its_claims_as_one_that_died() -> None:
    runs = [broken_off(ALICE, 11), ran(1, ALICE, 21, 29), broken_off(ALICE, 31)]
    faults = killed(ALICE, 11.5), paused(ALICE, 22, 28), killed(ALICE, 31.5)
    case = replace(case_of(*AROUND, *runs, faults=faults), set_aside=[("h", "a#1")])

    assert check(case).undeserved == []
    away = replace(case, faults=(faults[0], outage(22, 28), faults[2]))
    assert check(away).undeserved == []
    other = Fault(Kind.OTHER, "", 22, 28)
    assert check(replace(case, faults=(faults[0], other, faults[2]))).undeserved == [DEAD_LETTER]


def test_one_death_counts_once_though_it_was_seen_twice() -> None:
    runs = [broken_off(ALICE, 11), broken_off(ALICE, 21)]
    gone = Fault(Kind.GONE, "alice", 21.4, 21.6, frozenset({ALICE}))
    faults = killed(ALICE, 11.5), killed(ALICE, 21.5), gone
    case = replace(case_of(*AROUND, *runs, faults=faults), set_aside=[("h", "a#1")])

    assert check(case).undeserved == [DEAD_LETTER]


def test_a_process_that_died_may_have_claimed_what_it_did_not_begin() -> None:
    runs = [broken_off(ALICE, 11), broken_off(ALICE, 21), ran(0, ALICE, 31, 31.4, key="b")]
    faults = killed(ALICE, 11.5), killed(ALICE, 21.5), killed(ALICE, 31.5)
    case = replace(case_of(*AROUND, *runs, faults=faults), set_aside=[("h", "a#1")])

    assert check(case).held
    elsewhere = replace(runs[2], shard=1)
    assert check(replace(case, executions=[*AROUND, *runs[:2], elsewhere])).undeserved


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
