"""The service that a world runs: a handler that fails or rejects as its messages say."""

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
from simulation.troubles import Seams
from worker import App, Context, Reject, RetryPolicy, Revisions
from worker.config import Settings
from worker.resharding import Resharding
from worker.sharding.generations import Generation, Plan
from worker.transport import memory

ATTEMPTS = 3
#: Seconds that a message waits for an earlier revision.
PATIENCE = 4.0
#: The handler that does what its messages say; others do what they shall.
FALLIBLE = "record"
EXCHANGE, EVENT = "qw.events", "post"
#: From where only a newer release takes messages too.
PARTNER = "partner"


@dataclass(frozen=True, slots=True)
class Post:
    """A message: its place in the sequence of its key, and what comes of it, attempt by attempt."""

    id: str
    key: str | None
    plan: Sequence[str] = ()
    exchange: str = EXCHANGE
    #: Which state of its key it tells of, in a world with revisions.
    revision: int | None = None

    @property
    def body(self) -> bytes:
        return orjson.dumps({"id": self.id, "plan": [*self.plan], "revision": self.revision})


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


def _app(handlers: int, *, revisions: bool) -> App:
    app = App(SERVICE)
    policy = RetryPolicy(attempts=ATTEMPTS, wait="fixed", first_wait=0.2, jitter=0)

    judged = Revisions("revision", gap="wait", limit=PATIENCE, then="accept")

    @app.on(EVENT, name=FALLIBLE, retry=policy, revision=judged if revisions else None)
    def record(event: dict[str, Any], ctx: Context) -> None:
        Here.world.ledger.begin(ctx)
        plan = event["plan"]
        step = "reject" if "reject" in plan else dict(enumerate(plan, 1)).get(ctx.attempt)
        if step == "fail":
            raise ValueError("by plan")
        if step == "reject":
            raise Reject("by plan")

    if handlers > 1:

        @app.on(EVENT, name="observe")
        def observe(event: dict[str, Any], ctx: Context) -> None:
            Here.world.ledger.begin(ctx)

    return app


@cache
def service_of(shards: int, handlers: int, *, releases: int, revisions: bool = False) -> Made:
    """Return a service with one release, or two; its fallible handler may have revisions."""
    apps = [_app(handlers, revisions=revisions) for _ in range(releases)]
    for newer in apps[1:]:
        newer.bind(exchange=PARTNER, type="fanout")
    settings = Settings(
        app="bank:app",
        broker=f"memory://{NAME}",
        dedup=f"memory://{NAME}",
        shards=shards,
        processes=1,
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
        Resharding(app, settings).declare(Plan(Generation(1, shards)))
    del memory._databases[NAME]
    return Made(apps, settings, broker)
