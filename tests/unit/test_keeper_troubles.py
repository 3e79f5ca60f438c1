"""What is wrong with a lease store in the midst of a run ends nothing, and is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from keeping import ABLE, SHARDS, TERMS, Member, Store, has, listened
from waiting import until
from worker.errors import ConfigurationError, LeasesUnavailable, QworkerError, StoreCorrupt
from worker.leases.base import Held, Sync, lease_clock
from worker.sharding.generations import PLAN
from worker.sharding.pauses import PAUSED, Pauses


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store that every keeper opens."""
    shared = Store()
    monkeypatch.setattr("worker.supervisor.keeper.open_leases", lambda *_: shared)
    return shared


@pytest.fixture
def join(store: Store) -> Iterator[Callable[..., Member]]:
    """Start a member with these terms."""
    members: list[Member] = []

    def start(**terms: Any) -> Member:
        members.append(Member(**terms))
        return members[-1]

    yield start
    for member in members:
        member.keeper.close()


Join = Callable[..., Member]

WRONG = [
    ConfigurationError("lease store postgresql://host/db: password authentication failed"),
    StoreCorrupt("the lease store holds no book of leases"),
]


def rounds(member: Member, more: int) -> None:
    """Wait until so many more rounds were told."""
    before = len(member.heard)
    until(lambda: listened(member) and len(member.heard) >= before + more)


@pytest.mark.parametrize("error", WRONG, ids=["refused", "corrupt"])
def test_what_is_wrong_in_the_midst_of_a_run_is_an_absence_and_told_once(
    store: Store, join: Join, caplog: pytest.LogCaptureFixture, error: QworkerError
) -> None:
    caplog.set_level("INFO")
    ann = join()
    until(has(ann, 4))
    fences = dict(ann.fences)

    store.broken = error
    until(lambda: (listened(ann) and sum(bool(news.error) for news in ann.heard)) >= 2)
    assert ann.last.error == str(error)
    store.broken = LeasesUnavailable("and then it was unplugged")
    until(lambda: listened(ann) and ann.last.error == "and then it was unplugged")
    store.broken = None
    until(lambda: listened(ann) and ann.last.plan)

    assert ann.refused == ""
    assert ann.fences == fences, "what nobody took in the meantime is still ours"
    assert caplog.text.count(str(error)) == 1
    assert caplog.text.count("the lease store is back") == 1


@pytest.mark.parametrize("error", WRONG, ids=["refused", "corrupt"])
def test_what_is_wrong_from_the_start_is_told_as_a_mistake(
    store: Store, join: Join, error: QworkerError
) -> None:
    store.broken = error

    ann = join()

    assert until(lambda: ann.refused) == str(error)


def test_a_plan_that_somebody_spoilt_is_waited_for_until_it_is_mended(
    store: Store, join: Join
) -> None:
    ann = join()
    until(has(ann, 4))
    plan = store.look("bank").documents[PLAN].text

    store.spoil(PLAN, "{}")
    until(lambda: listened(ann) and "no plan of shards" in ann.last.error)
    store.spoil(PLAN, plan)
    until(lambda: listened(ann) and ann.last.plan)

    assert ann.refused == ""
    assert ann.fences.keys() == SHARDS


def test_a_document_on_pauses_that_nobody_can_read_changes_nothing_and_is_told_once(
    store: Store, join: Join, caplog: pytest.LogCaptureFixture
) -> None:
    ann = join()
    until(has(ann, 4))
    paused = Pauses().paused(1, shards=[2])
    ann.keeper.write(PAUSED, 0, paused.dump())
    until(lambda: listened(ann) and ann.last.paused == (1, paused))

    store.spoil(PAUSED, "[]")
    rounds(ann, 4)
    assert ann.last.paused == (1, paused)
    assert caplog.text.count("does not tell what is paused") == 1
    store.spoil(PAUSED, Pauses().dump())
    until(lambda: listened(ann) and ann.last.paused == (3, Pauses()))

    assert not any(news.error or news.refused for news in ann.heard)


@pytest.mark.parametrize("forgets", [(), (PLAN,)], ids=["everything", "the plan"])
def test_a_store_that_was_emptied_gives_nothing_new_while_others_may_trust_what_they_had(
    store: Store, join: Join, caplog: pytest.LogCaptureFixture, forgets: tuple[str, ...]
) -> None:
    ann, bob = join(), join()
    until(lambda: has(ann, 2)() and has(bob, 2)())
    fences = dict(ann.fences)
    bob.keeper.close()  # it hangs, and trusts its leases

    for name in bob.fences if forgets else ():
        store.sync("bank", Sync(bob.name, ABLE, release=[Held(name, bob.fences[name])]))
    store.forget(*forgets)
    since = lease_clock()
    until(lambda: listened(ann) and ann.last.view.settling)
    while ann.last.view.settling:
        listened(ann)
        assert ann.fences == fences
    assert lease_clock() - since >= TERMS.lease_ttl

    until(has(ann, 4))
    assert {name: ann.fences[name] for name in fences} == fences, "what it had it kept"
    assert caplog.text.count("the lease store forgot who owns what") == 1
