"""An app under test: its real consumer, on a broker and a dedup store in memory, tick by tick.

::

    def test_a_deposit_is_recorded_once():
        with TestWorker(app) as worker:
            deposit = UserDeposited(user_id="u1", amount=Decimal(5))
            worker.publish(deposit)
            worker.publish(deposit)
            worker.run()

            assert worker.executed == [("record", deposit.event_id, 1)]
            assert worker.dead_letters == []
            (mail,) = worker.events_of(SendEmail)
            assert mail.user_id == "u1"

Nothing else is in play: no server, no thread, no sleep. Handlers run in the thread of the test, and
the clock stands still until there is nothing to do but wait; then it jumps to the next retry.
"""

from __future__ import annotations

import inspect
import time
from asyncio import CancelledError
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any, Self, TypeVar

from worker.codec import Codec
from worker.consumer import Consumer
from worker.dedup.base import StoreOptions
from worker.dedup.memory import MemoryStore
from worker.errors import AlreadyDone
from worker.payload import decoder_for
from worker.testing.clock import FakeClock
from worker.testing.pools import INLINE
from worker.testing.seen import DeadLetter, Execution, SeenMessage
from worker.testing.tap import Tap
from worker.topology import dead_letter_queue, parked_queue
from worker.transport import memory

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from worker.app import App
    from worker.config import Settings
    from worker.context import Context
    from worker.ending import Finish
    from worker.message import Command, Event
    from worker.middleware import CallNext
    from worker.telemetry import RuntimeEvent

E = TypeVar("E")

_numbers = count(1)
_REAL_WAIT = 0.01


class TestWorker:
    """Runs ``app`` in the test's own process and thread. A context manager.

    ``clock`` is a :class:`FakeClock` of its own unless another one, or ``time.monotonic``, is
    given. ``settings`` are settings by name; they win over the app's own and over the project's
    files, and the environment has no say. The app itself is as it was when the block ends.
    """

    #: pytest must not take it for a group of tests.
    __test__ = False

    def __init__(
        self,
        app: App,
        *,
        clock: Callable[[], float] | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        self.app = app
        self.clock: Any = FakeClock() if clock is None else clock
        #: Every call of a handler, in order.
        self.executed: list[Execution] = []
        #: What the runtime told about itself: AttemptFailed, KeyParked and so on.
        self.runtime_events: list[RuntimeEvent] = []
        self._given = dict(settings or {})
        self._own: set[str] = set()  # ids that the test published
        self._stack = ExitStack()
        self._consumer: Consumer | None = None
        self._interruption: BaseException | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            name = f"qworker-test-{next(_numbers)}"
            stack.callback(memory.forget, name)
            url = f"memory://{name}"
            options = {"processes": 0, **self._given, "broker": url, "dedup": url}
            #: The settings that it runs with.
            settings = stack.enter_context(self.app.configured(options, {}))
            self.settings: Settings = replace(settings, shards=settings.first_shards)
            remembered = StoreOptions(
                self.settings.claim_ttl,
                self.settings.retention,
                revision_retention=self.settings.revision_retention,
            )
            #: The dedup store.
            self.store = MemoryStore(remembered, self.clock)
            stack.enter_context(self.app.telemetry.subscribe(self.runtime_events.append))
            self._codec = Codec.of(self.app.name, self.settings)
            self._tap = Tap(self.settings, self.app.topology(self.settings))
            stack.callback(self._tap.close)
            stack.callback(self._close)
            self._open()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop the app and forget the broker with all that it holds."""
        self._stack.close()

    def publish(self, event: Event | Command, **options: Any) -> str:
        """Publish ``event`` as another service would, and return its id.

        ``options`` are those of ``App.publish``. A command to a service that is not there is
        taken all the same.
        """
        self._tap.welcome_commands()
        self._own.add(event.event_id)
        return self.app.publish(event, **options)

    def publish_raw(  # noqa: PLR0913 - what a foreign publisher may say
        self,
        body: bytes | str,
        *,
        name: str | None = None,
        id: str | None = None,  # noqa: A002 - the word of the wire format
        key: str | None = None,
        headers: Mapping[str, Any] | None = None,
        exchange: str | None = None,
        routing_key: str | None = None,
        **properties: Any,
    ) -> None:
        """Publish as any AMQP client could, with nothing but what is given.

        ``properties`` are AMQP's, by py-amqp's names (``content_type``, ``reply_to``); without
        an ``exchange`` it goes to that of events, by its name.
        """
        given = {"type": name, "message_id": id, **properties}
        table = dict(headers or {}) | ({} if key is None else {"qw-key": key})
        if id is not None:
            self._own.add(id)
        self._tap.publish(
            body.encode() if isinstance(body, str) else body,
            {name: value for name, value in given.items() if value is not None},
            table,
            self.settings.events_exchange if exchange is None else exchange,
            routing_key if routing_key is not None else name or "",
        )

    def run(self, timeout: float = 5.0, *, advance: bool = True) -> None:
        """Let the app work until nothing is left to do; time passes by itself where it must.

        With ``advance=False`` a FakeClock stands still: what waits for a retry goes on waiting,
        until ``clock.advance(...)`` and another run. Raises TimeoutError after ``timeout`` real
        seconds. After ``drain`` it starts the app anew, as a deployment does.
        """
        deadline = time.monotonic() + timeout
        consumer = self._consumer or self._open()
        self._tap.welcome_commands()
        while consumer.tick(0) or not self._is_done(consumer, advance=advance):
            if self._interruption is not None:
                interruption, self._interruption = self._interruption, None
                raise interruption
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"App({self.app.name!r}) still has work after {timeout:g} s:"
                    f" {consumer.statistics()}"
                )

    def drain(self) -> Finish:
        """Stop the app as SIGTERM does, and tell how it ended; what it has not begun stays."""
        consumer = self._consumer or self._open()
        deadline = self.clock() + self.settings.drain_timeout
        consumer.drain(deadline)
        while consumer.ended is None:
            if not consumer.tick(0) and consumer.ended is None:
                self._pass_time(min(consumer.next_due, deadline))
        self._close()
        return consumer.ended

    @property
    def published(self) -> list[SeenMessage]:
        """What handlers published, in order; copies under one id count once."""
        found = [SeenMessage.of(arrival, self._codec) for arrival in self._tap.arrivals()]
        unique = {(seen.message_id, seen.name, seen.body): seen for seen in reversed(found)}
        return [seen for seen in reversed(unique.values()) if self._is_apps(seen)]

    def events_of(self, kind: type[E]) -> list[E]:
        """Return the events or commands of this class that handlers published, in order."""
        decode, name = decoder_for(kind), getattr(kind, "name", kind.__name__)
        messages = [seen.message for seen in self.published if seen.name == name]
        return [decode(message) for message in messages if message is not None]

    @property
    def dead_letters(self) -> list[DeadLetter]:
        """What lies in the dead-letter queue, in order."""
        return self._letters(dead_letter_queue(self.app.name))

    @property
    def parked(self) -> list[DeadLetter]:
        """What lies in the queue of parked messages, in order."""
        return self._letters(parked_queue(self.app.name))

    def _open(self) -> Consumer:
        consumer = Consumer(
            self.app,
            self.settings,
            shards=range(self.settings.shards),
            store=self.store,
            clock=self.clock,
            random=Random(0),
            pools=INLINE,
        )
        self.app.middlewares.insert(0, self._note_execution)  # composed when it opens
        try:
            consumer.open()
        finally:
            self.app.middlewares.remove(self._note_execution)
        self._consumer = consumer
        return consumer

    def _close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close()

    def _note_execution(self, context: Context, call_next: CallNext) -> Any:
        handler = context.handler.removeprefix(f"{self.app.name}.")
        self.executed.append(Execution(handler, context.message_id, context.attempt))
        with self._watching():
            result = call_next(context)
        return self._watched(result) if inspect.isawaitable(result) else result

    async def _watched(self, running: Awaitable[Any]) -> Any:
        with self._watching():
            return await running

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Remember what is meant for the test, not for the runtime: Ctrl-C, ``pytest.fail``."""
        try:
            yield
        except (Exception, AlreadyDone, SystemExit, CancelledError):
            raise
        except BaseException as error:
            self._interruption = error
            raise

    def _is_done(self, consumer: Consumer, *, advance: bool) -> bool:
        """Tell whether nothing is left to do; else let time pass until there may be."""
        if consumer.is_idle():
            return True
        due = consumer.next_due
        if not advance and isinstance(self.clock, FakeClock) and due > self.clock():
            return True
        self._pass_time(due)
        return False

    def _pass_time(self, due: float) -> None:
        if isinstance(self.clock, FakeClock) and due < float("inf"):
            self.clock.advance_to(due)
        else:
            time.sleep(_REAL_WAIT)

    def _is_apps(self, seen: SeenMessage) -> bool:
        return bool(seen.message_id) and seen.message_id not in self._own

    def _letters(self, queue: str) -> list[DeadLetter]:
        return [DeadLetter.of(arrival, self._codec) for arrival in self._tap.look_into(queue)]
