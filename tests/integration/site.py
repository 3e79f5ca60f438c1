"""A broker with what is there already, and a service that joins it, ticked by the test itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import amqp
import orjson

from waiting import until
from worker import App
from worker.config import Settings
from worker.consumer import Consumer
from worker.ending import Finish
from worker.transport.capabilities import connect

PATIENCE = 60.0


class Site:
    """A broker with whatever a test declares, publishers, and a service beside them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connection = connect(url, heartbeat=0, timeout=10, name="site")
        self.channel: Any = self._connection.channel()
        self.channel.confirm_select()
        self.seen: list[tuple[str, int]] = []
        self._dedup = f"memory://{uuid4()}"

    def close(self) -> None:
        self._connection.release()

    def publish(self, exchange: str, routing_key: str = "", *numbers: int, **facts: Any) -> None:
        """Publish events of two keys in turn, as a plain client does."""
        headers = facts.pop("headers", {})
        for n in numbers:
            key = facts.get("key", f"key-{n % 2}")
            message = amqp.Message(
                orjson.dumps({"n": n}),
                message_id=f"{facts.get('id', 'id')}-{n}",
                type=facts.get("type", "test.event"),
                delivery_mode=2,
                content_type="application/json",
                application_headers={"qw-key": key, **headers},
                **({"priority": facts["priority"]} if "priority" in facts else {}),
            )
            self.channel.basic_publish(message, exchange, routing_key)
            self.channel.wait(amqp.spec.Basic.Ack)

    def app(self, **settings: Any) -> App:
        """Return a service that notes what it is told."""
        app = App("joins", broker=self.url, dedup=self._dedup, settings=settings)

        @app.on("test.*", name="note")
        def note(event: dict[str, int], context: Any) -> None:
            self.seen.append((context.key, event["n"]))

        return app

    @property
    def numbers(self) -> list[int]:
        return [n for _, n in self.seen]


class Running:
    """A consumer of an app, ticked by the test's own thread."""

    def __init__(self, app: App, **options: Any) -> None:
        self.settings: Settings = app.configure({"shards": 1, **options})
        self.consumer = Consumer(app, self.settings, shards=range(self.settings.shards))
        self.consumer.open()

    def until(self, condition: Callable[[], object], told: str, *others: Running) -> None:
        """Tick until ``condition``, and the ``others`` beside."""

        def ticked() -> object:
            for each in (self, *others):
                each.consumer.tick(0.01)
            return condition()

        until(ticked, PATIENCE, told)

    def takes(self, queue: str) -> bool:
        """Tell whether it consumes ``queue``."""
        channels = self.consumer._link.channels
        return any(each.queue == queue and not each.closed for each in channels)

    def drain(self) -> None:
        self.consumer.drain(time.monotonic() + 30)
        assert self.consumer.run() is Finish.DRAINED

    def kill(self) -> None:
        """End it without a word: nothing more is acknowledged, recorded or remembered."""
        self.consumer._link._inbound.abandon()  # type: ignore[union-attr]  # it is open
        self.consumer._link._inbound = None
        self.consumer.close()


Serve = Callable[..., Running]


def depth(site: Site, queue: str) -> int:
    return int(site.channel.queue_declare(queue, passive=True).message_count)


def make_stream(site: Site, *numbers: int) -> None:
    arguments = {"x-queue-type": "stream"}
    site.channel.queue_declare("log", durable=True, auto_delete=False, arguments=arguments)
    site.publish("", "log", *numbers)
