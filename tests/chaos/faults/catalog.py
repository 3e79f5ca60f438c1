"""All faults of this folder by name, for a schedule that chooses among them.

::

    setting = Setting(random=Random(seed), redis=redis, to_redis=[one, other])
    name = setting.random.choice(possible(setting))
    with CATALOG[name].made(setting):
        ...  # for at most CATALOG[name].hold seconds
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Any

from chaos.faults import outages, rabbitmq, redis
from chaos.faults.clock import Clock
from chaos.faults.disk import SmallDisk
from chaos.faults.proxy import CONFIRM, PUBLISH, Proxy
from machines.network import Way
from servers import RabbitMQ, Redis

#: A server that starts may take a minute, and half of one to stop.
_RESTART = 90.0
_STEPS = (2.0, 60.0, 3600.0)


class Excuse(Enum):
    """What a fault may be the reason of, at the most."""

    OTHER = "nothing"
    BROKER = "that something is delivered twice: its acknowledgement did not come, or in vain"
    CUT = "second effects: who was cut off could not record what it did, and lost its lease"
    OUTAGE = "second effects, of processes that are killed while nobody can record anything"
    HANG = "the same: who waits for a broker that hangs records nothing meanwhile"
    AMNESIA = "second effects: it is forgotten what was done"
    CLOCK = "fences that fall, where it is forgotten what they were"
    LOSS = "messages that are gone: an operator deleted them"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What there is to trouble; what is not there has no faults."""

    random: Random
    rabbitmq: RabbitMQ | None = None
    #: URL of the virtual host at ``rabbitmq`` whose queues may be deleted.
    broker: str = ""
    redis: Redis | None = None
    #: Each stands before somebody else, so that links fail one by one.
    to_rabbitmq: Sequence[Proxy] = ()
    to_redis: Sequence[Proxy] = ()
    #: Those of services, and that of Redis.
    clocks: Sequence[Clock] = ()
    redis_clock: Clock | None = None
    disk: SmallDisk | None = None


@dataclass(frozen=True, slots=True)
class Trouble:
    """A fault that a schedule can choose."""

    #: The field of a setting that it happens to; where that has several, to one of them. What
    #: happens to links may come at any time, but of the rest only one to each field at once.
    to: str
    make: Callable[[Any, Setting], AbstractContextManager[object]]
    #: Seconds that it may be held, at most. 0: it is a moment.
    hold: float = 10.0
    #: Seconds beyond that in which it comes about and is healed.
    more: float = 5.0
    excuse: Excuse = Excuse.OTHER

    @property
    def longest(self) -> float:
        """Seconds from its beginning until all is as before, at most."""
        return self.hold + self.more

    def made(self, setting: Setting) -> AbstractContextManager[object]:
        """Return it as a context. What is left to chance is chosen now."""
        target = getattr(setting, self.to)
        if isinstance(target, list | tuple):
            target = setting.random.choice(target)
        return self.make(target, setting)


def possible(setting: Setting) -> list[str]:
    """Return the names of what can be made in a setting, in the catalog's order."""
    return [name for name, trouble in CATALOG.items() if getattr(setting, trouble.to)]


@contextmanager
def _moment(act: Callable[[], object]) -> Iterator[None]:
    act()
    yield


@contextmanager
def _down(link: Proxy) -> Iterator[None]:
    with link.refuse():
        link.reset()
        yield


def _delete_a_queue(broker: str, at: Setting) -> AbstractContextManager[None]:
    assert at.rabbitmq is not None
    server, names = at.rabbitmq, rabbitmq.queues(at.rabbitmq, broker)
    chosen = at.random.choice(names) if names else ""
    return _moment(lambda: rabbitmq.delete_queue(server, broker, chosen))


def _way(at: Setting) -> Way:
    return at.random.choice(list(Way))


def _links(
    to: str, excuse: Excuse, asked: bytes, answered: bytes, *, less: Excuse
) -> dict[str, Trouble]:
    """Return what befalls links; ``excuse``: of who is cut off, and hears nothing of it.

    ``less``: of who is late, or hears of it at once.
    """
    return {
        "slow": Trouble(to, lambda link, at: link.delay(at.random.uniform(0.01, 0.2)), excuse=less),
        "narrow": Trouble(
            to, lambda link, at: link.limit(at.random.uniform(5e4, 1e6), _way(at)), excuse=less
        ),
        "held": Trouble(to, lambda link, at: link.hold(_way(at)), excuse=excuse),
        "cut": Trouble(to, lambda link, at: link.cut(_way(at)), excuse=excuse),
        "down": Trouble(
            to,
            lambda link, _: _down(link),
            excuse=less if excuse is Excuse.HANG else excuse,  # that is heard of at once
        ),
        "reset": Trouble(to, lambda link, _: _moment(link.reset), hold=0, excuse=less),
        "reply-lost": Trouble(to, lambda link, _: link.lose_reply(asked, answered), excuse=less),
    }


def _servers(to: str, excuse: Excuse, *, hung: Excuse | None = None) -> dict[str, Trouble]:
    return {
        "stopped": Trouble(to, lambda it, _: outages.stopped(it), more=_RESTART, excuse=excuse),
        "killed": Trouble(to, lambda it, _: outages.killed(it), more=_RESTART, excuse=excuse),
        "hung": Trouble(to, lambda it, _: it.standing_still(), excuse=hung or excuse),
    }


def _named(prefix: str, troubles: Mapping[str, Trouble]) -> dict[str, Trouble]:
    return {f"{prefix}-{name}": trouble for name, trouble in troubles.items()}


def _clock(to: str, sign: int, excuse: Excuse = Excuse.OTHER) -> Trouble:
    return Trouble(
        to, lambda clock, at: clock.stepped(sign * at.random.choice(_STEPS)), excuse=excuse
    )


_RABBITMQ = {
    **_servers("rabbitmq", Excuse.BROKER, hung=Excuse.HANG),
    "connections-closed": Trouble(
        "rabbitmq",
        lambda it, _: _moment(lambda: rabbitmq.close_connections(it)),
        hold=0,
        excuse=Excuse.BROKER,
    ),
    "short-of-memory": Trouble(
        "rabbitmq", lambda it, _: rabbitmq.short_of_memory(it), excuse=Excuse.BROKER
    ),
    "short-of-disk": Trouble(
        "rabbitmq", lambda it, _: rabbitmq.short_of_disk(it), excuse=Excuse.BROKER
    ),
    "queue-deleted": Trouble("broker", _delete_a_queue, hold=0, excuse=Excuse.LOSS),
}
_REDIS = {
    **_servers("redis", Excuse.OUTAGE),
    "emptied": Trouble(
        "redis", lambda it, _: redis.emptied(it), more=_RESTART, excuse=Excuse.AMNESIA
    ),
    "scripts-flushed": Trouble(
        "redis", lambda it, _: _moment(lambda: redis.flush_scripts(it)), hold=0
    ),
    "connections-closed": Trouble(
        "redis", lambda it, _: _moment(lambda: redis.close_connections(it)), hold=0
    ),
    "paused": Trouble("redis", lambda it, _: redis.paused(it), excuse=Excuse.OUTAGE),
    "out-of-memory": Trouble("redis", lambda it, _: redis.out_of_memory(it), excuse=Excuse.OUTAGE),
    "without-replicas": Trouble(
        "redis", lambda it, _: redis.without_replicas(it), excuse=Excuse.OUTAGE
    ),
    "read-only": Trouble("redis", lambda it, _: redis.demoted(it), excuse=Excuse.OUTAGE),
    "master-down": Trouble(
        "redis", lambda it, _: redis.demoted(it, stale=False), excuse=Excuse.OUTAGE
    ),
    "busy": Trouble("redis", lambda it, _: redis.busy(it), hold=2, excuse=Excuse.OUTAGE),
}

CATALOG: Mapping[str, Trouble] = {
    **_named("rabbitmq", _RABBITMQ),
    **_named(
        "rabbitmq-link", _links("to_rabbitmq", Excuse.HANG, PUBLISH, CONFIRM, less=Excuse.BROKER)
    ),
    **_named("redis", _REDIS),
    **_named("redis-link", _links("to_redis", Excuse.CUT, b"", b"", less=Excuse.OTHER)),
    "redis-clock-ahead": _clock("redis_clock", 1, Excuse.CLOCK),
    "redis-clock-behind": _clock("redis_clock", -1, Excuse.CLOCK),
    "clock-ahead": _clock("clocks", 1),
    "clock-behind": _clock("clocks", -1),
    "disk-full": Trouble("disk", lambda disk, _: disk.full(), excuse=Excuse.OUTAGE),
}
