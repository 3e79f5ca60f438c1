"""A letter goes back to the shard that has its key, by the plan that the lease store knows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from worker import App, Event
from worker.codec import Codec
from worker.config import Settings, load_settings
from worker.deadletters import Letter
from worker.leases.base import LeaseOptions
from worker.leases.open import open_leases
from worker.parking import KEY
from worker.places import Places
from worker.resharding import topology_of
from worker.sharding.generations import PLAN, Generation, Phase, Plan
from worker.transport.arrival import Arrival

ONE = Plan(Generation(1, 4))
MOVED = Plan(Generation(3, 8))
_numbers = count()


class Deposited(Event, name="user.deposited", key="user"):
    """What is observed."""

    user: str


class Office:
    """Settings, and a lease store that knows what a test says."""

    def __init__(self, folder: Path, broker: str = "") -> None:
        url = f"sqlite:///{folder / 'leases.db'}"
        self.settings: Settings = load_settings(
            {"broker": broker or f"sqlite:///{folder / 'broker.db'}", "leases": url}, {}
        )
        self.store = open_leases(url, LeaseOptions())

    def agree(self, plan: Plan, group: str = "bank") -> None:
        """Change the plan of a group of queues."""
        document = self.store.look(group).documents.get(PLAN)
        assert self.store.write(group, PLAN, document.version if document else 0, plan.dump())

    def letter(self, queue: str, key: str | None = "u1", **headers: Any) -> Letter:
        """Return a letter from a queue; without a key it has one in its payload alone."""
        told: dict[str, Any] = {"qw-dead-queue": queue, **headers}
        if key is not None:
            told["qw-key"] = key
        properties = {"message_id": f"m{next(_numbers)}", "application_headers": told}
        if key is None:
            properties["type"] = "user.deposited"
        arrival = Arrival(None, 1, False, "", "bank.dlq", properties, b'{"user": "u1"}')
        return Letter.of(arrival, Codec.of("bank", self.settings))


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path)
    with closing(office.store):
        yield office


def at_phase(phase: Phase) -> Plan:
    plan = ONE.reshard(8)
    while plan.phase is not phase:
        plan = plan.advanced()
    return plan


def test_without_a_plan_a_letter_returns_to_where_it_came_from(office: Office) -> None:
    with Places("bank", office.settings) as places:
        assert places.of(office.letter("bank.g1.3")) == ("", "bank.g1.3")
        assert places.of_key("u1") == ("bank.g1", "")
        assert not places.between


def test_a_letter_of_the_published_generation_returns_to_its_own_queue(office: Office) -> None:
    office.agree(MOVED)

    with Places("bank", office.settings) as places:
        assert places.of(office.letter("bank.g3.7")) == ("", "bank.g3.7")
        assert places.of(office.letter("bank.g3.relay")) == ("", "bank.g3.relay")


@pytest.mark.parametrize("broker", ["amqp://localhost", ""])
@pytest.mark.parametrize("queue", ["bank.g1.3", "bank.g12.0", "bank.g1.relay"])
def test_of_another_generation_it_goes_to_the_shard_of_its_key(
    tmp_path: Path, broker: str, queue: str
) -> None:
    office = Office(tmp_path, broker)
    office.agree(MOVED)
    app = App("bank")
    app.on(Deposited)(lambda event: None)
    shard = topology_of(app, office.settings, MOVED.current).queue_for("u1")

    with closing(office.store), Places("bank", office.settings, app) as places:
        assert places.of(office.letter(queue)) == ("", shard)
        assert places.of(office.letter(queue, None)) == ("", shard), "a key in the payload"
        assert places.of(office.letter(queue, None, **{KEY: "u1"})) == ("", shard), "parked"
        assert places.of_key("u1") == ("", shard)
        assert shard.startswith("bank.g3.")


def test_without_its_app_a_letter_without_a_key_goes_by_its_id(office: Office) -> None:
    office.agree(MOVED)
    letter = office.letter("bank.g1.3", None)

    with Places("bank", office.settings) as places:
        assert places.of(letter) == places.of_key(letter.id)


@pytest.mark.parametrize("queue", ["", "somebody's", "bank.dlq", "shop.g1.3", "bankers.g1.0"])
def test_what_is_no_queue_of_the_service_stays_as_it_is(office: Office, queue: str) -> None:
    office.agree(MOVED)

    with Places("bank", office.settings) as places:
        assert places.of(office.letter(queue)) == ("", queue)


def test_each_group_of_queues_has_its_own_plan(office: Office) -> None:
    office.agree(MOVED, "bank.only.mail")

    with Places("bank", office.settings) as places:
        assert places.of(office.letter("bank.g1.3")) == ("", "bank.g1.3")
        assert places.of(office.letter("bank.only.mail.g1.3"))[1].startswith("bank.only.mail.g3.")


@pytest.mark.parametrize(
    ("phase", "generation", "between"),
    [
        (Phase.DECLARE, "bank.g1.", False),
        (Phase.BIND, "bank.g1.", False),
        (Phase.SEAL, "bank.g2.", True),
        (Phase.DRAIN, "bank.g2.", True),
        (Phase.REMOVE, "bank.g2.", False),
    ],
)
def test_during_a_change_it_goes_where_nothing_is_sealed(
    office: Office, phase: Phase, generation: str, *, between: bool
) -> None:
    office.agree(at_phase(phase))

    with Places("bank", office.settings) as places:
        _, queue = places.of(office.letter("bank.g1.3"))
        assert queue.startswith(generation)
        assert places.between is between


def test_what_was_found_counts_until_somebody_looks_again(office: Office) -> None:
    letter = office.letter("bank.g1.3")
    with Places("bank", office.settings) as places:
        assert places.of(letter) == ("", "bank.g1.3")
        office.agree(ONE)
        assert places.moved(), "now there is one"
        office.agree(ONE.reshard(8))
        assert not places.moved(), "the same is published"
        office.agree(MOVED)
        assert places.of(letter) == ("", "bank.g1.3")
        assert places.moved()
        assert places.of(letter)[1].startswith("bank.g3.")
