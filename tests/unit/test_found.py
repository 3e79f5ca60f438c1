"""What the queues of a broker tell where nobody remembers the plan."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import count

import pytest

from worker import App
from worker.config import Settings, load_settings
from worker.declaring import declare
from worker.errors import ConfigurationError
from worker.found import find_generations
from worker.inspector import Inspector
from worker.resharding import topology_of
from worker.sharding.generations import Generation, Phase, Plan
from worker.transport import memory

_numbers = count()


class Site:
    """A broker in memory, and the service that is looked for."""

    def __init__(self, url: str) -> None:
        self.app = App("bank")
        self.app.on("user.*", name="record")(lambda event: None)
        self.settings: Settings = load_settings({"broker": url}, {})
        self.inspector = Inspector("bank", self.settings)

    def declare(self, number: int, shards: int, *, front: bool = True) -> None:
        topology = topology_of(self.app, self.settings, Generation(number, shards))
        if not front:
            topology = topology.without_front()
        self.inspector.ask(lambda channel: declare(channel, topology))

    def remove(self, queue: str) -> None:
        self.inspector.ask(lambda channel: channel.queue_delete(queue))

    def found(self, asked: int = 1) -> list[Generation]:
        known = partial(topology_of, self.app, self.settings)
        return find_generations(self.inspector, known, asked)


@pytest.fixture
def site() -> Iterator[Site]:
    name = f"found-{next(_numbers)}"
    site = Site(f"memory://{name}")
    with site.inspector:
        yield site
    memory.forget(name)


def test_nothing_is_found_where_nothing_is_and_nothing_is_declared(site: Site) -> None:
    assert site.found() == []
    assert not site.inspector.has_exchange("bank.g1")


@pytest.mark.parametrize("asked", [1, 3, 4])
def test_a_generation_is_found_with_its_shards_whatever_is_asked_for(
    site: Site, asked: int
) -> None:
    site.declare(100, 3)

    assert site.found(asked) == [Generation(100, 3)]


def test_of_a_sealed_one_the_queues_tell(site: Site) -> None:
    site.declare(1, 3, front=False)
    site.declare(2, 5)

    assert site.found(5) == [Generation(1, 3), Generation(2, 5)]


def test_a_queue_that_somebody_removed_comes_back_with_the_number_that_was(site: Site) -> None:
    site.declare(1, 4)
    site.remove("bank.g1.2")

    assert site.found(4) == [Generation(1, 4)]
    with pytest.raises(ConfigurationError, match=r"some of the shard queues of 'bank\.g1'"):
        site.found(2)


def test_one_generation_is_gone_on_with_and_of_two_the_change_is() -> None:
    old, new = Generation(3, 4), Generation(4, 8)

    assert Plan.found([old], single_active=True) == Plan(old, single_active=True)
    plan = Plan.found([old, new], single_active=False)
    assert plan == Plan(old, new, Phase.BIND)
    assert (plan.consumed, plan.published) == (old, old)


def test_more_than_two_are_not_understood() -> None:
    with pytest.raises(ConfigurationError, match="generations 1, 2, 3"):
        Plan.found([Generation(n, 4) for n in (1, 2, 3)], single_active=False)
