"""What the workload *bank* waits for, and how it counts its money; what others publish."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from acceptance.apps.events import Step
from chaos.apps.ledger import Strict
from chaos.database import Database, connect
from chaos.history import Entry
from chaos.workloads import Bank, GitHistory, Ledger, strays
from worker.ids import derived_id

BANK = Bank(1)
CONFIRMED = Entry(what="confirmed", at=1.0, id="t", detail="bank.transfer")
DEPOSIT = derived_id("t", "bank.withdraw", 0)


def withdrawn(at: float = 2.0) -> Entry:
    return Entry(what="effect", at=at, id="t", handler="bank.withdraw", detail="account-1:-57")


def deposited(at: float = 3.0) -> Entry:
    return Entry(what="effect", at=at, id=DEPOSIT, handler="bank.deposit", detail="account-2:57")


def test_a_transfer_is_not_over_before_its_money_has_come() -> None:
    assert BANK.wanted([CONFIRMED], ()) == {("bank.withdraw", "t")}
    both = {("bank.withdraw", "t"), ("bank.deposit", DEPOSIT)}
    assert BANK.wanted([CONFIRMED, withdrawn()], ()) == both
    assert BANK.wanted([CONFIRMED, withdrawn()], [("bank.deposit", "t")]) == both


def test_a_first_half_that_is_set_aside_after_its_effect_sends_nothing_before_its_replay() -> None:
    for handler in ("bank.withdraw", ""):
        aside = [(handler, "t")]
        assert BANK.wanted([CONFIRMED, withdrawn()], aside) == {("bank.withdraw", "t")}
        assert BANK.mistakes([withdrawn()], None, aside) == []
        assert BANK.mistakes([withdrawn(), deposited()], None, aside) == []


def test_nobody_has_a_second_half_before_the_first_one_began() -> None:
    begun = [Entry(what="begin", at=at, id="t", handler="bank.withdraw") for at in (4.0, 2.0)]

    assert BANK.children([*begun, withdrawn(3.0)]) == {DEPOSIT: 2.0}
    assert Ledger(1).children(begun) == {}


def test_money_that_comes_is_neither_made_nor_lost() -> None:
    assert BANK.mistakes([withdrawn(), deposited()], None, []) == []


def test_money_that_does_not_come_is_lost() -> None:
    assert "-57" in BANK.mistakes([withdrawn()], None, [])[0]


def test_money_that_nobody_sent_is_made() -> None:
    assert BANK.mistakes([deposited()], None, []) != []


def test_money_of_a_deposit_that_is_set_aside_is_under_way() -> None:
    assert BANK.mistakes([withdrawn()], None, [("bank.deposit", DEPOSIT)]) == []
    assert BANK.mistakes([withdrawn()], None, [("", DEPOSIT)]) == [], "for all handlers"


def test_what_another_handler_or_event_left_aside_brings_no_money() -> None:
    for aside in [("bank.withdraw", DEPOSIT), ("bank.deposit", "another")]:
        assert BANK.mistakes([withdrawn()], None, [aside]) != [], aside


def test_what_is_done_and_set_aside_has_come_already() -> None:
    aside = [("bank.deposit", DEPOSIT)]
    assert BANK.mistakes([withdrawn(), deposited()], None, aside) == []


def test_second_effects_are_for_the_judge_of_executions() -> None:
    entries = [withdrawn(), deposited(), deposited(4.0)]
    assert BANK.mistakes(entries, None, []) == []
    assert BANK.mistakes([withdrawn(), withdrawn(2.5)], None, [("bank.deposit", DEPOSIT)]) == []


def test_the_accounts_of_the_database_are_what_counts(tmp_path: Path) -> None:
    file = tmp_path / "accounts.db"
    with connect(file) as db:
        db.execute("INSERT INTO accounts VALUES ('account-1', -57)")
    db.close()

    found = Database(file)
    assert BANK.mistakes([withdrawn()], found, [("bank.deposit", DEPOSIT)]) == []
    assert BANK.mistakes([withdrawn(), deposited()], found, []) != []


@pytest.mark.parametrize("keys", [10, 1000])
def test_a_few_events_take_longer_than_a_lease_and_some_longer_than_a_claim(keys: int) -> None:
    streams = [Ledger(1, keys).stream(number, 3) for number in range(3)]
    events = [each.event for stream in streams for each in islice(stream, 1000)]
    seconds = [(event.key, event.seconds) for event in events if isinstance(event, Step | Strict)]
    long = [(key, each) for key, each in seconds if each >= 1]

    assert 3 <= len(long) <= 30
    assert any(each > 5 for _, each in long)
    assert max(Counter(key for key, _ in long).values()) <= 2


@pytest.mark.parametrize("app", [Ledger.app, Bank.app, GitHistory.app])
def test_a_publisher_that_dies_has_keys_of_its_own_in_their_order(app: str) -> None:
    mine = [each.facts for each in islice(strays(app, "stray-1"), 50)]

    assert {facts["key"].partition("/")[0] for facts in mine} == {"stray-1"}
    for key in {facts["key"] for facts in mine}:
        numbers = [facts["sequence"] for facts in mine if facts["key"] == key]
        assert numbers == [*range(len(numbers))]
