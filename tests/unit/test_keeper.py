"""A supervisor's talk with the lease store: what it takes, gives and loses, and that it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from keeping import ABLE, SHARDS, UNABLE, Member, Store, has, listened
from waiting import until
from worker.leases.base import Held, Sync
from worker.sharding.generations import PLAN, Generation, Plan


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


def test_the_first_one_writes_the_plan_and_takes_everything(store: Store, join: Join) -> None:
    ann = join()
    until(has(ann, 4))

    assert ann.fences.keys() == SHARDS
    assert ann.last.plan == Plan(Generation(1, 4))
    assert ann.last.version == 1
    assert store.owners == dict.fromkeys(SHARDS, ann.name)


def test_what_is_taken_is_trusted_for_less_than_a_lease_lasts(store: Store, join: Join) -> None:
    ann = join()
    until(has(ann, 4))
    first = ann.last.trusted_until
    until(lambda: (listened(ann) and ann.last.trusted_until) > first)

    (taking,) = [news for news in ann.heard if news.take]
    for grant in taking.take.values():
        assert grant.trusted_until == taking.trusted_until
    trusted = [news.trusted_until for news in ann.heard if news.plan is not None]
    assert trusted == sorted(trusted)


def test_who_joins_gets_a_half_and_fences_rise(store: Store, join: Join) -> None:
    ann = join()
    until(has(ann, 4))
    before = dict(ann.fences)

    bob = join()
    until(lambda: has(ann, 2)() and has(bob, 2)())

    assert ann.fences.keys() | bob.fences.keys() == SHARDS
    assert all(fence > before[name] for name, fence in bob.fences.items())
    assert all(fence == before[name] for name, fence in ann.fences.items())


def test_what_is_asked_for_is_nobodys_before_it_was_given(store: Store, join: Join) -> None:
    ann = join()
    until(has(ann, 4))
    ann.gives = False

    bob = join()
    until(lambda: (listened(ann) and len(ann.giving)) == 2)
    asked = set(ann.giving)
    rounds = len(bob.heard)
    until(lambda: (listened(ann, bob) and len(bob.heard)) > rounds + 3)

    assert bob.fences == {}
    assert store.owners == dict.fromkeys(SHARDS, ann.name)
    assert set(ann.giving) == asked, "it is not asked twice"

    ann.gives = True
    until(lambda: listened(ann) and has(bob, 2)())
    assert bob.fences.keys() == asked


def test_who_cannot_work_gets_nothing(store: Store, join: Join) -> None:
    ann, bob = join(), join()
    bob.keeper.tell(UNABLE)
    until(lambda: listened(bob) and has(ann, 4)())

    ann.keeper.tell(UNABLE)
    bob.keeper.tell(ABLE)

    until(lambda: listened(ann) and has(bob, 4)())
    assert ann.fences == {}


def test_who_leaves_gives_everything_and_is_gone_when_everybody_knows(
    store: Store, join: Join
) -> None:
    ann, bob = join(), join()
    until(lambda: has(ann, 2)() and has(bob, 2)())
    ann.gives = False

    ann.keeper.leave()
    until(lambda: (listened(ann) and len(ann.giving)) == 2)
    assert not ann.gone
    assert ann.name in store.look("bank").members
    ann.gives = True
    until(lambda: ann.gone)

    assert ann.name not in store.look("bank").members
    until(has(bob, 4))
    assert store.owners == dict.fromkeys(SHARDS, bob.name)


def test_who_has_nothing_is_gone_only_when_everybody_knows(store: Store, join: Join) -> None:
    ann = join()
    until(has(ann, 4))
    bob = join()
    bob.keeper.tell(UNABLE)
    until(lambda: listened(bob) and bob.heard)

    bob.keeper.leave()
    until(lambda: bob.gone)

    assert bob.name not in store.look("bank").members


def test_who_begins_to_leave_while_the_store_is_away_gives_everything_after_it(
    store: Store, join: Join
) -> None:
    ann = join()
    until(has(ann, 4))

    store.away = True
    until(lambda: listened(ann) and ann.last.error)
    ann.keeper.leave()
    errors = len(ann.heard)
    until(lambda: (listened(ann) and len(ann.heard)) > errors + 1)
    assert ann.fences.keys() == SHARDS
    store.away = False

    until(lambda: ann.gone)
    assert store.owners == {}
    assert ann.name not in store.look("bank").members


def test_a_store_that_is_away_is_told_once_and_asked_until_it_is_back(
    store: Store, join: Join, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    ann = join()
    until(has(ann, 4))
    fences = dict(ann.fences)

    store.away = True
    until(lambda: (listened(ann) and sum(bool(news.error) for news in ann.heard)) >= 2)
    assert ann.last.error == "it was unplugged"
    assert ann.last.plan is None
    told = ann.last
    assert [*told.take, *told.give, *told.lost] == []
    store.away = False
    until(lambda: listened(ann) and ann.last.plan)

    assert ann.fences == fences, "what nobody took in the meantime is still ours"
    assert caplog.text.count("the lease store is away") == 1
    assert caplog.text.count("the lease store is back") == 1


def test_what_somebody_else_took_in_the_meantime_is_lost(store: Store, join: Join) -> None:
    ann = join()
    until(has(ann, 4))
    before = dict(ann.fences)
    ann.keeper.close()

    bob = join()
    until(has(bob, 4))  # when the leases have expired

    assert all(fence > before[name] for name, fence in bob.fences.items())


def test_who_slept_past_its_leases_hears_that_they_are_lost(store: Store, join: Join) -> None:
    ann = join()
    until(has(ann, 4))
    taken = dict(ann.fences)

    for name, epoch in taken.items():  # as if it had slept for long
        store.sync("bank", Sync(ann.name, ABLE, release=[Held(name, epoch)]))
        store.sync("bank", Sync("bob", UNABLE, acquire=[name]))

    until(lambda: (listened(ann) and len(lost(ann))) == 4)
    assert lost(ann) == SHARDS


def lost(member: Member) -> set[str]:
    return {name for news in member.heard for name in news.lost}


@pytest.mark.parametrize("terms", [{"shards": 8}, {"single_active": True}])
def test_who_does_not_fit_is_refused_and_leaves(
    store: Store, join: Join, terms: dict[str, Any]
) -> None:
    ann = join()
    until(has(ann, 4))

    bob = join(**terms)
    refused = until(lambda: bob.refused)

    assert refused.startswith("bank ")
    assert bob.fences == {}
    until(lambda: bob.name not in store.look("bank").members)
    said = len(store.said)
    until(lambda: len(store.said) > said + 3)
    assert not any(sync.member == bob.name for sync in store.said[said:])
    ann.listen()
    assert ann.fences.keys() == SHARDS


def test_a_single_active_service_has_one_consumer_and_the_other_takes_over(
    store: Store, join: Join
) -> None:
    ann = join(single_active=True)
    until(has(ann, 1))
    bob = join(single_active=True)
    rounds = len(ann.heard)
    until(lambda: (listened(ann, bob) and len(ann.heard)) > rounds + 4)
    assert (set(ann.fences), set(bob.fences)) == ({"g1"}, set())

    fence = ann.fences["g1"]
    ann.keeper.leave()
    until(lambda: listened(ann) and has(bob, 1)())

    assert bob.fences["g1"] > fence


def test_a_service_may_change_its_way_when_all_of_it_was_stopped(store: Store, join: Join) -> None:
    ann = join()
    until(has(ann, 4))
    ann.keeper.leave()
    until(lambda: ann.gone)

    bob = join(single_active=True)
    until(has(bob, 1))

    assert bob.fences.keys() == {"g1"}


def test_the_way_does_not_change_under_somebody_who_joined_a_moment_ago(
    store: Store, join: Join
) -> None:
    """Who changes it saw nobody, and the other took leases before the change was written."""
    ann = join()
    until(has(ann, 4))
    ann.keeper.leave()
    until(lambda: ann.gone)
    write = store.write

    def join_and_write(service: str, name: str, version: int, text: str) -> bool:
        store.sync("bank", Sync("carl", ABLE, acquire=sorted(SHARDS)))
        return write(service, name, version, text)

    store.write = join_and_write  # type: ignore[method-assign]  # between two steps of bob's
    bob = join(single_active=True)
    until(lambda: listened(bob) and bob.last.plan is not None and bob.last.plan.single_active)
    while "carl" in store.owners.values():  # until they have expired
        bob.listen()
        assert "g1" not in store.owners

    until(has(bob, 1))


def test_documents_are_written_in_order_also_when_the_store_comes_back(
    store: Store, join: Join
) -> None:
    ann = join()
    until(has(ann, 4))
    plan = Plan(Generation(1, 4)).reshard(8)
    store.away = True
    until(lambda: listened(ann) and ann.last.error)

    ann.keeper.write(PLAN, 1, plan.dump())
    ann.keeper.write(PLAN, 1, "never")
    ann.keeper.write(PLAN, 2, plan.advanced().dump())
    store.away = False
    until(lambda: (listened(ann) and ann.last.version) == 3)

    assert ann.last.plan == plan.advanced()


def test_one_member_at_a_time_leads_a_change(store: Store, join: Join) -> None:
    ann, bob = join(), join()
    until(lambda: has(ann, 2)() and has(bob, 2)())

    ann.keeper.write(PLAN, 1, Plan(Generation(1, 4)).reshard(8).dump())

    until(lambda: listened(ann, bob) and "reshard" in store.owners)
    until(lambda: listened(ann, bob) and ("reshard" in ann.fences) ^ ("reshard" in bob.fences))
    leader, other = (ann, bob) if "reshard" in ann.fences else (bob, ann)
    leader.keeper.leave()
    until(lambda: listened(leader, other) and "reshard" in other.fences)
    assert "reshard" not in leader.fences


@pytest.mark.parametrize(
    "error",
    [RuntimeError("a bug"), ValueError("facts: too long")],
    ids=["bug", "too long"],
)
def test_a_talk_that_cannot_go_on_ends_the_service_instead_of_standing_still(
    store: Store, join: Join, error: Exception
) -> None:
    ann = join()
    until(has(ann, 4))

    store.broken = error

    assert str(error) in until(lambda: ann.refused)
    assert ann.last.refused is not None
    assert ann.last.refused.exit_code != 0
