"""A supervisor cut off from Redis, from RabbitMQ or from both never shares a shard with another.

Packets are dropped without a word: to the server, from it, or both ways. While a link is cut, the
other supervisor has everything; once it is mended, both share the shards again.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest

from acceptance.running import eventually, some_more
from machines.load import SteadyLoad
from machines.network import Way
from machines.site import Site, To
from machines.supervisor import Part

pytestmark = [pytest.mark.usefixtures("needs_links"), pytest.mark.long]

SHARDS = 4
OPTIONS = ("--shards", str(SHARDS), "--processes", "2", "--concurrency", "8")
LEASE, HEARTBEAT = 3.0, 1.0
SETTINGS: dict[str, Any] = {
    "lease_ttl": LEASE,
    "claim_ttl": LEASE,
    "heartbeat": HEARTBEAT,
    "dedup_timeout": 0.5,
}
#: Seconds in which who is left has everything, beyond what it takes to be sure of the loss.
TAKE_OVER = 2.0
#: Intervals between heartbeats after which RabbitMQ gives up a silent consumer, at most.
_MISSED = 3

Tell = Callable[[str], None]


@pytest.mark.parametrize("way", Way)
@pytest.mark.parametrize("to", [To.REDIS, To.RABBITMQ])
def test_a_link_is_cut_and_mended(site: Site, tell: Tell, to: To, way: Way) -> None:
    cut_off, other = site.started("cut_off", "other", options=OPTIONS, **SETTINGS)
    load = site.load(seconds=0.1, rate=50.0)

    with load.running():
        site.until_shared(SHARDS, cut_off, other)
        since = monotonic()
        with site.cut(cut_off, to, way):
            site.until_shared(SHARDS, other)
            mended = monotonic()
        site.until_shared(SHARDS, cut_off, other)
        some_more(cut_off)

    gaps = site.gaps(since, mended)
    tell(f"  {to.value} cut off ({way.value}): a shard stood still for {max(gaps.values()):.2f} s")
    if to is To.REDIS:
        assert site.begun_by(cut_off, since + LEASE, mended) == [], "it knew without being told"
    site.judge(load, cut_off, other)


def test_a_machine_that_vanishes_is_replaced(site: Site, tell: Tell) -> None:
    vanished, other = site.started("vanished", "other", options=OPTIONS, **SETTINGS)
    load = site.load()

    with load.running():
        site.until_shared(SHARDS, vanished, other)
        since = monotonic()
        with site.cut(vanished, To.ALL):
            vanished.kill(Part.GROUP)  # no server hears of it
            site.until_shared(SHARDS, other)
            gaps = site.gaps(since, monotonic())

    longest = max(gaps.values())
    tell(f"  a machine vanished: a shard stood still for {longest:.2f} s at most")
    assert longest <= max(LEASE, _MISSED * HEARTBEAT) + TAKE_OVER, gaps
    site.judge(load, other)


def test_a_link_that_flickers(site: Site) -> None:
    cut_off, other = site.started("cut_off", "other", options=OPTIONS, **SETTINGS)
    load = site.load(seconds=0.1, rate=50.0)

    with load.running():
        site.until_shared(SHARDS, cut_off, other)
        for to in (To.REDIS, To.RABBITMQ, To.ALL):
            for way in Way:
                with site.cut(cut_off, to, way):
                    some_more(other, 60)
                some_more(other, 60)
        site.until_shared(SHARDS, cut_off, other)

    site.judge(load, cut_off, other)


def test_both_are_cut_off_from_the_leases_and_nobody_begins_anything(site: Site) -> None:
    one, two = site.started("one", "two", options=OPTIONS, **SETTINGS)
    load = site.load(seconds=0.1, rate=50.0)

    with load.running():
        site.until_shared(SHARDS, one, two)
        with site.cut(one, To.REDIS), site.cut(two, To.REDIS):
            until_published(load, 300)
            begun = len(site.ledger.entries("begin"))
            until_published(load, 100)
            assert len(site.ledger.entries("begin")) == begun
        site.until_shared(SHARDS, one, two)

    site.judge(load, one, two)


def until_published(load: SteadyLoad, number: int) -> None:
    """Wait until so many more events were confirmed; at a steady rate that is a time too."""
    target = len(load.confirmed) + number
    eventually(lambda: len(load.confirmed) >= target, "publishing goes on")
