"""The service that a world runs: a handler that does what its messages say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any, NamedTuple

import amqp
import orjson

from simulation.ledger import SERVICE
from simulation.moments import TTL
from simulation.seams import Here
from simulation.servers import NAME, Broker
from simulation.shapes import Shape
from simulation.troubles import Seams
from worker import App, Context, Reject, Relayed, RetryPolicy, Revisions
from worker.config import Settings
from worker.ids import derived_id
from worker.resharding import Resharding
from worker.sharding.generations import Generation, Plan
from worker.transport import memory

ATTEMPTS = 3
#: The handler that does what its messages say; others do what they shall.
FALLIBLE = "record"
EXCHANGE, EVENT = "qw.events", "post"
#: What it publishes for a message that says so, and who handles that.
CHILD, FOLLOWER = "child", "follow"
#: From where only a newer release takes messages too.
PARTNER = "partner"
#: Steps of a plan: an attempt fails; the message is rejected; it has a child; each of its attempts
#: kills its process, when it would have come to its end.
FAIL, REJECT, PARENT, KILLER = "fail", "reject", "child", "kill"
#: The plan of a message that fails at each attempt.
HOPELESS = (FAIL,) * ATTEMPTS


@dataclass(frozen=True, slots=True)
class Post:
    """A message: its place in the sequence of its key, and what comes of it, attempt by attempt."""

    id: str
    key: str | None
    plan: Sequence[str] = ()
    exchange: str = EXCHANGE
    #: It has the id of another one, and not its payload.
    is_other: bool = False
    #: Which state of its key it tells of, in a world with revisions.
    revision: int | None = None
    #: The message whose child it is; empty for what is published by the publisher.
    parent: str = ""

    @property
    def body(self) -> bytes:
        return orjson.dumps(self.payload)

    @property
    def payload(self) -> dict[str, Any]:
        if self.parent:
            return {"of": self.parent}
        also = {"other": True} if self.is_other else {}
        return {"id": self.id, "plan": [*self.plan], "revision": self.revision, **also}

    @property
    def child(self) -> Post | None:
        """The message that its handler publishes; None where it publishes none."""
        if PARENT not in self.plan:
            return None
        id_ = derived_id(self.id, f"{SERVICE}.{FALLIBLE}", 0)
        return Post(id_, self.key, parent=self.id)

    @property
    def is_poison(self) -> bool:
        """Whether it is to be set aside by itself, since it has no effect however it goes."""
        return REJECT in self.plan or KILLER in self.plan or (*self.plan,) == HOPELESS


def message_of(post: Post) -> amqp.Message:
    headers = {} if post.key is None else {"qw-key": post.key}
    return amqp.Message(
        post.body,
        message_id=post.id,
        type=EVENT,
        delivery_mode=2,
        content_type="application/json",
        application_headers=headers,
    )


class Made(NamedTuple):
    """A service: its releases, the older one first, their settings, and what is declared."""

    apps: Sequence[App]
    settings: Settings
    #: A broker on which all of it is declared.
    broker: Broker


def _record(event: dict[str, Any], ctx: Context) -> None:
    """Do what the message says."""
    Here.world.ledger.begin(ctx, is_other="other" in event)
    plan = event["plan"]
    step = REJECT if REJECT in plan else dict(enumerate(plan, 1)).get(ctx.attempt)
    if step == FAIL:
        raise ValueError("by plan")
    if step == REJECT:
        raise Reject("by plan")
    if PARENT in plan:
        ctx.publish(Relayed({"of": event["id"]}, key=ctx.key, name=CHILD))
    _take_effect(ctx)


def _take_effect(ctx: Context) -> None:
    """Have it now, where it is a transaction; else the handler has it at its end."""
    world = Here.world
    if world.shape.once:
        with world.database as db:
            ctx.once(db)
        world.ledger.commit()


def _app(shape: Shape) -> App:
    app = App(SERVICE)
    policy = RetryPolicy(
        attempts=ATTEMPTS,
        wait="fixed",
        first_wait=0.2,
        jitter=0,
        exhausted="park_key" if shape.parks else "dead_letter",
    )
    judged = Revisions("revision", gap="wait", limit=shape.patience, then="accept")
    revision = judged if shape.revisions else None
    app.on(EVENT, name=FALLIBLE, retry=policy, revision=revision)(_record)
    if shape.handlers > 1:

        @app.on(EVENT, name="observe")
        def observe(event: dict[str, Any], ctx: Context) -> None:
            Here.world.ledger.begin(ctx)
            _take_effect(ctx)

    if shape.children:

        @app.on(CHILD, name=FOLLOWER)
        def follow(event: dict[str, Any], ctx: Context) -> None:
            Here.world.ledger.begin(ctx, of=event["of"])
            _take_effect(ctx)

    return app


@cache
def service_of(shape: Shape) -> Made:
    """Return a service with one release, or two."""
    apps = [_app(shape) for _ in range(shape.releases)]
    for newer in apps[1:]:
        newer.bind(exchange=PARTNER, type="fanout")
    settings = Settings(
        app="bank:app",
        broker=f"memory://{NAME}",
        dedup=f"memory://{NAME}",
        shards=shape.shards,
        processes=1,
        single_active=shape.single_active,
        drain_timeout=3.0,
        connect_timeout=0.1,
        claim_ttl=TTL,
        lease_ttl=TTL,
        outage_after=1000,
    )
    seams = Seams(Random(0), lambda *_: None)
    broker = Broker.empty(seams)
    memory._databases[NAME] = broker  # type: ignore[assignment]  # as above
    for app in apps:
        Resharding(app, settings).declare(Plan(Generation(1, shape.shards)))
    del memory._databases[NAME]
    return Made(apps, settings, broker)
