"""The app: a service's name, its handlers, and how to publish. A registry, nothing runs here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar

from worker.codec import Codec
from worker.config import load_settings
from worker.errors import ConfigurationError, UsageError
from worker.handler import Handler, make_handler
from worker.horizons import check_horizons
from worker.leases.open import sole_lease
from worker.middleware import refuse_async
from worker.names import check_service
from worker.publisher import Publisher
from worker.sources import Source
from worker.telemetry import Telemetry
from worker.topology import Binding, Topology, lay_out
from worker.transport.capabilities import capabilities_of

if TYPE_CHECKING:
    from worker.config import Settings
    from worker.leases.sole import SoleLease
    from worker.message import Command, Event, Outgoing
    from worker.middleware import Middleware
    from worker.relays import Step
    from worker.retry import RetryPolicy
    from worker.revisions import By, Revisions
    from worker.sources import Declared, Offset

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R", bound="Callable[..., Any] | Step")
Lifespan = Callable[[], AbstractContextManager[Any]]
L = TypeVar("L", bound=Callable[[], Iterator[Any] | AbstractContextManager[Any]])


class App:
    """A service: handlers that share a name, queues and settings.

    ``broker`` and ``dedup`` are URLs; ``settings`` any settings by name. They are the weakest
    source: the command line, the environment and files win. Registering is for import time, from
    one thread; publishing is for any thread.
    """

    def __init__(
        self,
        name: str,
        *,
        broker: str | None = None,
        dedup: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        check_service(name)
        self.name = name
        self.telemetry = Telemetry()
        self.handlers: dict[str, Handler] = {}
        self.middlewares: list[Middleware] = []
        self.bindings: list[Binding] = []
        self.sources: list[Source] = []
        self.lifespan_manager: Lifespan | None = None
        self._given = dict(settings or {})
        if broker is not None:
            self._given["broker"] = broker
        if dedup is not None:
            self._given["dedup"] = dedup
        self._settings: Settings | None = None
        self._publisher: Publisher | None = None
        self._routes: dict[str, tuple[Handler, ...]] = {}

    def on(  # noqa: PLR0913 - the facts of a handler
        self,
        what: type[Event | Command] | str,
        *,
        type: Any = None,  # noqa: A002 - the word of the public contract
        name: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        revision: By | Revisions | None = None,
    ) -> Callable[[F], F]:
        """Register the decorated function, coroutine function or class as a handler.

        ``what`` is an event or command class, a name, or a topic pattern. With a name or pattern
        the handler gets the plain payload, or a ``type``: a dataclass, attrs class, msgspec
        Struct, TypedDict or pydantic model. A class has ``handle(event)`` or
        ``handle(event, context)`` and is made once a process, without arguments. ``name`` is the
        handler's identity in the memory of ids; keep it when renaming the function. ``timeout``
        is in seconds. ``revision`` names the field (or is a function of the event) with the number
        of the state that a message tells of: what is not above the last one of its key that was
        done is done without calling the handler. :class:`~worker.Revisions` says more.

        Raises ConfigurationError for what cannot be meant: also for an argument that is annotated
        with an event class, and gets another (unless a middleware, used before, may change that).
        """
        if inspect.isroutine(what):
            raise ConfigurationError(
                f"App({self.name!r}).on is used without saying what {what.__name__} observes;"
                " write @app.on(UserDeposited), or a name or pattern"
            )

        def register(target: F) -> F:
            self._add(
                what,
                target,
                method="on",
                kind=type,
                name=name,
                retry=retry,
                timeout=timeout,
                revision=revision,
            )
            return target

        return register

    def relay(  # noqa: PLR0913 - the facts of a handler
        self,
        source: type[Event | Command] | str,
        *,
        to: type[Event | Command] | str,
        type: Any = None,  # noqa: A002 - as in on
        name: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        revision: By | Revisions | None = None,
    ) -> Callable[[R], R]:
        """Register the decorated function as a handler of ``source`` whose result is published.

        It is as in :meth:`on`, or a generator function, or a step of :mod:`worker.relays`. It
        returns None (then nothing is published), one message or several: a list, tuple or
        iterator. ``to`` says as what: an event or command class, of which it returns instances or
        the fields; or a name, in which ``{name}`` stands for the name that came, and it returns
        the payload. A :class:`~worker.Relayed` says a key or headers too; without a key of its
        own a message has the key of the one that it came of, so order per key is kept. Ids are
        derived from that one's id, and all is confirmed before it counts as done.

        Raises ConfigurationError for what cannot be meant: also where ``to`` is something that
        ``source`` takes.
        """
        given: object = to
        if given is None:
            raise ConfigurationError(f"App({self.name!r}).relay({source!r}) says no to=...")

        def register(target: R) -> R:
            self._add(
                source,
                target,
                method="relay",
                kind=type,
                name=name,
                retry=retry,
                timeout=timeout,
                to=to,
                revision=revision,
            )
            return target

        return register

    def use(self, middleware: Middleware) -> None:
        """Wrap every handler in ``middleware``; the first one used is the outermost."""
        if not callable(middleware):
            raise ConfigurationError(
                f"App({self.name!r}).use({middleware!r}): a function of (context, call_next)"
            )
        self.middlewares.append(middleware)

    def lifespan(self, manager: L) -> L:
        """Run ``manager`` (a context manager, or a generator with one yield) once a process.

        What it yields is ``context.state`` of every handler.
        """
        if inspect.iscoroutinefunction(manager) or inspect.isasyncgenfunction(manager):
            raise ConfigurationError(
                f"App({self.name!r}).lifespan: a plain generator with one yield, not an async one"
            )
        known: Any = manager  # which of the two it is, is asked at run time
        is_generator = inspect.isgeneratorfunction(manager)
        self.lifespan_manager = contextmanager(known) if is_generator else known
        return manager

    def bind(  # noqa: PLR0913 - the facts of an exchange
        self,
        *,
        exchange: str,
        type: str = "topic",  # noqa: A002 - the word of AMQP
        routing_key: str = "",
        arguments: Mapping[str, Any] | None = None,
        durable: bool = True,
        auto_delete: bool = False,
        exchange_arguments: Mapping[str, Any] | None = None,
        declare: bool = True,
        to: str = "",
    ) -> None:
        """Also take messages from an exchange of your own, declared as said.

        ``arguments`` are those of the binding (for a headers exchange: what to match),
        ``exchange_arguments`` those of the exchange. ``declare=False``: it is somebody else's; it
        has to be there, and is only bound. ``to`` names another exchange that it is bound to, in
        place of the service.
        """
        facts = durable, auto_delete, dict(exchange_arguments or {}), declare, to
        binding = Binding(exchange, type, routing_key, dict(arguments or {}), *facts)
        self.bindings.append(binding)

    def source(  # noqa: PLR0913 - the facts of a queue
        self,
        queue: str,
        *,
        offset: Offset | None = None,
        name: str = "",
        declare: Declared | None = None,
        exchange: str = "",
        routing_key: str = "",
        arguments: Mapping[str, Any] | None = None,
        queue_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Also take messages from a queue, or from a stream, that somebody else fills.

        One process of the service at a time passes them on to the shards, in order. With an
        ``offset`` it is a stream: that is where it is read from at first, and later from where it
        was left, which is remembered under ``name`` (the queue's where it is left out).
        ``declare`` makes it ``"durable"``, ``"transient"``, ``"exclusive"`` (gone when nobody
        consumes it) or a ``"stream"``, with ``queue_arguments``, bound to ``exchange`` by
        ``routing_key`` and ``arguments``; where it is left out, the queue is there.

        Raises ConfigurationError for what cannot be meant.
        """
        facts = exchange, routing_key, dict(arguments or {}), dict(queue_arguments or {})
        source = Source(queue, name or queue, offset, declare, *facts)
        source.check_beside(self.sources)
        self.sources.append(source)

    def route(self, name: str) -> tuple[Handler, ...]:
        """Return the handlers that observe messages of ``name``, in order of registration."""
        found = self._routes.get(name)
        if found is None:
            found = tuple(h for h in self.handlers.values() if h.matches(name))
            if len(self._routes) < 10_000:  # noqa: PLR2004 - names come from outside; stay bounded
                self._routes[name] = found
        return found

    def observers(self) -> dict[str, str]:
        """Return the handlers of events, each with the name or pattern that it observes."""
        return {h.name: h.pattern for h in self.handlers.values() if not h.is_command}

    def only(self, names: tuple[str, ...]) -> None:
        """Keep just these handlers. Raises UsageError for a name that is none."""
        for wanted in names:
            if wanted not in self.handlers:
                near = get_close_matches(wanted, self.handlers, n=1)
                hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(self.handlers)}"
                raise UsageError(f"App({self.name!r}) has no handler {wanted!r}; {hint}")
        if names:
            self.handlers = {name: self.handlers[name] for name in names}
            self._routes.clear()

    def topology(self, settings: Settings, generation: int = 1) -> Topology:
        """Return what the service declares on its broker."""
        handlers = self.handlers.values()
        patterns = [(h.pattern, h.is_command) for h in handlers]
        able = capabilities_of(settings.broker)
        check_horizons([handler.times for handler in handlers], settings, able)
        # An embedded broker has no streams; that they are left out is told by who would read them.
        sources = [each for each in self.sources if able.has_queue_types or not each.is_stream]
        return lay_out(
            self.name,
            patterns,
            self.bindings,
            settings,
            able=able,
            generation=generation,
            sources=sources,
        )

    def configure(self, options: Mapping[str, object]) -> Settings:
        """Merge ``options`` of the command line with every other source, and keep the result."""
        self._check_middlewares()
        self._settings = load_settings(options, app_settings=self._given)
        return self._settings

    @contextmanager
    def configured(
        self, options: Mapping[str, object], environ: Mapping[str, str] | None = None
    ) -> Iterator[Settings]:
        """Have other settings, and a publisher of their own, while the block runs."""
        before = self._settings, self._publisher
        self._publisher = None
        try:
            self._check_middlewares()
            self._settings = load_settings(options, environ, app_settings=self._given)
            yield self._settings
        finally:
            self.close()
            self._settings, self._publisher = before

    @property
    def settings(self) -> Settings:
        """The settings of this process."""
        return self._settings if self._settings is not None else self.configure({})

    def publish(
        self,
        event: Event | Command,
        *,
        headers: Mapping[str, Any] | None = None,
        priority: int | None = None,
        transient: bool = False,
        correlation_id: str | None = None,
    ) -> str:
        """Publish ``event``, wait until the broker confirmed it, and return its id.

        Reconnects as needed. Raises Unroutable, PublishRefused or ConfirmTimeout where it was
        not stored, BrokerUnreachable where no broker answers. Any thread may call it. An event that
        no service observes goes nowhere, which is no error.
        """
        with self.publisher() as out:
            return out.publish(
                event,
                headers=headers,
                priority=priority,
                transient=transient,
                correlation_id=correlation_id,
            )

    def encode(
        self,
        event: Event | Command,
        *,
        headers: Mapping[str, Any] | None = None,
        priority: int | None = None,
        transient: bool = False,
        correlation_id: str | None = None,
    ) -> Outgoing:
        """Return ``event`` as ``publisher().send`` takes it: for outboxes, which send it later.

        Raises TypeError or ValueError where it cannot be encoded.
        """
        return Codec.of(self.name, self.settings).encode(
            event,
            headers=headers,
            priority=priority,
            transient=transient,
            correlation_id=correlation_id,
        )

    @contextmanager
    def publisher(self) -> Iterator[Publisher]:
        """Publish many: confirms are pipelined; leaving the block waits for all of them.

        Messages are sent as they are published, not at the end; ``flush`` waits for the confirms of
        those so far. One block at a time: other threads wait for their turn.
        """
        if self._publisher is None:
            self._publisher = Publisher(Codec.of(self.name, self.settings), self.settings)
        with self._publisher as out:
            yield out

    def lease(self, name: str) -> SoleLease:
        """Return the lease ``name``, which one process of the service has at a time.

        It is kept in the service's lease store while its block runs: ``with app.lease("report") as
        lease``, and then ``lease.is_mine()``. Entering the block raises ConfigurationError, or
        LeasesUnavailable where the store does not answer within ``connect_timeout``.
        """
        return sole_lease(self.name, name, self.settings)

    def close(self) -> None:
        """Close the publishing connection, if one is open."""
        if self._publisher is not None:
            self._publisher.close()
            self._publisher = None

    def _add(
        self,
        what: type[Event | Command] | str,
        target: Callable[..., Any] | Step,
        **facts: Any,
    ) -> None:
        # A middleware may hand on an event of another class than it got.
        facts["any_event"] = bool(self.middlewares)
        handler = make_handler(self.name, what, target, **facts)
        if handler.name in self.handlers:
            raise ConfigurationError(
                f"App({self.name!r}): two handlers are named {handler.name!r}; give one of them"
                " name=..."
            )
        self.handlers[handler.name] = handler
        self._routes.clear()

    def _check_middlewares(self) -> None:
        plain = [handler.name for handler in self.handlers.values() if not handler.is_async]
        if plain:
            refuse_async(self.middlewares, plain[0], f"App({self.name!r}).use")
