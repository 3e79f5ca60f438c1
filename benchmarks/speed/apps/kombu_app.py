"""The bare kombu loop: takes what comes, acknowledges in batches, does nothing else. The limit.

python -m speed.apps.kombu_app
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import orjson
from kombu.connection import Connection
from kombu.entity import Queue
from kombu.messaging import Consumer, Producer

from speed.apps.work import note

if TYPE_CHECKING:
    from speed.stream import Stream

_QUEUE = os.environ.get("KOMBU_QUEUE_TYPE", "quorum")
_BATCH = 50
_PREFETCH = 256


def main() -> None:
    """Consume until a signal ends the process."""
    with Connection(os.environ["BROKER_URL"]) as connection:
        channel = connection.channel()
        channel.basic_qos(0, _PREFETCH, False)
        unacknowledged = 0
        # Nothing is decoded but where moments are noted, by the number of the event.
        number_of = _number_of if "SPEED_ARRIVALS" in os.environ else _no_number

        def receive(message: Any) -> None:
            nonlocal unacknowledged
            note(number_of(message))
            unacknowledged += 1
            if unacknowledged == _BATCH:
                message.channel.basic_ack(message.delivery_tag, multiple=True)
                unacknowledged = 0

        with Consumer(channel, [_queue(channel)], on_message=receive):
            while True:
                connection.drain_events()


def publish_all(stream: Stream) -> None:
    """Publish what qworker's publisher does; confirmed one by one where the load says so."""
    options = {"confirm_publish": stream.load.one_by_one}
    with Connection(os.environ["BROKER_URL"], transport_options=options) as connection:
        channel = connection.channel()
        queue = _queue(channel)
        queue.declare()
        producer = Producer(channel)
        for ident, key, number, padding in stream:
            producer.publish(
                orjson.dumps({"key": key, "number": number, "padding": padding}),
                routing_key=queue.name,
                content_type="application/json",
                content_encoding="utf-8",
                delivery_mode=2,
                message_id=ident,
                type="speed.tick",
                headers={"qw-key": key},
            )


def _number_of(message: Any) -> int:
    number: int = orjson.loads(message.body)["number"]
    return number


def _no_number(_: Any) -> int:
    return 0


def _queue(channel: Any) -> Queue:
    arguments = {"x-queue-type": _QUEUE}
    return Queue("bare", channel=channel, durable=True, queue_arguments=arguments)


if __name__ == "__main__":
    main()
