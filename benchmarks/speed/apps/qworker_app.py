"""qworker: the id and the key are the event's own, and dedup is a setting.

``fill`` publishes by ``app``; the worker is started by the command line alone.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speed.apps.work import WORK, note, work
from speed.load import ASYNCHRONOUS, REJECTING, RETRYING, fails
from worker import App, Context, Event, Reject, RetryPolicy

if TYPE_CHECKING:
    from speed.stream import Message, Stream

app = App("speed", broker=os.environ["QWORKER_BROKER_URL"])


class Tick(Event, name="speed.tick", key="key"):
    """An event in the order of its key."""

    key: str
    number: int
    padding: str


class Loose(Event, name="speed.loose"):
    """An event without order."""

    key: str
    number: int
    padding: str


if WORK == ASYNCHRONOUS:
    from speed.apps import coroutines

    @app.on(Tick)
    async def tick(event: Tick) -> None:
        """Work in the event loop."""
        await coroutines.work(event.number)

elif WORK == REJECTING:

    @app.on(Tick)
    def refuse(event: Tick) -> None:
        """Have every event dead-lettered."""
        note(event.number)
        raise Reject("no")

elif WORK == RETRYING:

    @app.on(Tick, retry=RetryPolicy(attempts=4, wait="fixed", first_wait=0.001))
    def try_again(event: Tick, context: Context) -> None:
        """Fail at first, half of the events."""
        if fails(event.number) and context.attempt == 1:
            raise RuntimeError("not yet")
        work(event.number)

elif "SPEED_STAGES" in os.environ:
    from speed.apps.stages import Stages

    stages = Stages(Path(os.environ["SPEED_STAGES"]))

    @app.on(Tick)
    def tell(event: Tick) -> None:
        """Note how far the consumer was."""
        stages.note(event.number)
        note(event.number)

else:

    @app.on(Tick)
    def handle(event: Tick) -> None:
        """Work."""
        work(event.number)

    @app.on(Loose)
    def handle_loose(event: Loose) -> None:
        """Work."""
        work(event.number)


def publish_all(stream: "Stream") -> None:
    """Publish with confirms: a window of them, or one by one where the load says so."""
    kind = Tick if stream.load.ordered else Loose

    def event(message: "Message") -> Event:
        given: dict[str, Any] = {"event_id": message.ident} if stream.load.random_ids else {}
        return kind(key=message.key, number=message.number, padding=message.padding, **given)

    if stream.load.one_by_one:
        for message in stream:
            app.publish(event(message))
    else:
        with app.publisher() as out:
            for message in stream:
                out.publish(event(message))
    app.close()
