"""Which queues a message goes to: the exchange types of AMQP 0-9-1, and consistent hashing. Pure.

A router is what one exchange and its bindings have become; ``route`` walks from exchange to
exchange through their routers. Behaviour follows the AMQP 0-9-1 specification (section 3.1.3,
"Exchange types") and, where it is silent, RabbitMQ's documentation ("Exchanges", "Alternate
Exchanges", "Exchange to Exchange Bindings", and the readme of its consistent-hash plugin).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from worker.routing import topic_matches, topic_words
from worker.sharding.ring import Ring

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

CONSISTENT_HASH = "x-consistent-hash"
EXCHANGE_TYPES = frozenset(("direct", "fanout", "topic", "headers", CONSISTENT_HASH))

#: Routing keys whose match a topic router remembers; then it forgets them all and starts anew.
_REMEMBERED_KEYS = 4096


class Destination(NamedTuple):
    """Where a binding leads to."""

    name: str
    is_queue: bool


@dataclass(frozen=True, slots=True)
class Binding:
    """One binding of an exchange."""

    destination: Destination
    key: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


class Router(Protocol):
    """An exchange with its bindings."""

    #: Whether the answer depends on the routing key alone, so that it may be remembered.
    by_key_alone: bool

    def match(self, key: str, properties: Mapping[str, Any], /) -> Collection[Destination]:
        """Return the destinations of a message, each once."""
        ...


def make_router(type_: str, arguments: Mapping[str, Any], bindings: Sequence[Binding]) -> Router:
    """Return the router of an exchange. Raises ValueError for an unknown type."""
    match type_:
        case "direct":
            return _Direct(bindings)
        case "fanout":
            return _Fanout(bindings)
        case "topic":
            return _Topic(bindings)
        case "headers":
            return _Headers(bindings)
        case "x-consistent-hash":
            return _Hash(arguments, bindings)
    raise ValueError(f"unknown exchange type {type_!r}")


class Found(NamedTuple):
    """An exchange that was looked up: its router, and the name of its alternate exchange."""

    router: Router
    alternate: str | None


class Route(NamedTuple):
    """How far a routing key alone leads, from one exchange.

    ``queues`` have the message for sure; ``undecided`` are the routers that must see it first.
    """

    queues: tuple[str, ...]
    undecided: tuple[Found, ...]


def trace(exchange: str, key: str, find: Callable[[str], Found | None]) -> Route:
    """Trace the way of the messages with ``key`` that are published to ``exchange``.

    ``find`` looks up an exchange; None means that it is not there (what is bound to it, or falls
    back to it, is lost then). Every exchange is passed at most once, so bindings in a circle end.
    The default exchange names a queue whether or not there is one.
    """
    return _walk([exchange], {exchange}, key, None, find)


def resolve(
    route: Route, key: str, properties: Mapping[str, Any], find: Callable[[str], Found | None]
) -> tuple[str, ...]:
    """Return the queues of one message, each once, by the route of its key."""
    if not route.undecided:
        return route.queues
    queues = dict.fromkeys(route.queues)
    further = []
    for router, alternate in route.undecided:
        destinations = router.match(key, properties)
        if not destinations and alternate is not None:
            further.append(alternate)
        for name, is_queue in destinations:
            if is_queue:
                queues[name] = None
            else:
                further.append(name)
    if further:
        # Exchanges that the route has passed may be passed once more; that adds nothing.
        rest = _walk(further, set(further), key, properties, find)
        queues.update(dict.fromkeys(rest.queues))
    return tuple(queues)


def _walk(
    waiting: list[str],
    seen: set[str],
    key: str,
    properties: Mapping[str, Any] | None,
    find: Callable[[str], Found | None],
) -> Route:
    """Walk from exchange to exchange; without properties, stop where they are asked for."""
    queues: dict[str, None] = {}
    undecided = []
    while waiting:
        found = find(waiting.pop())
        if found is None:
            continue
        if properties is None and not found.router.by_key_alone:
            undecided.append(found)
            continue
        destinations = found.router.match(key, properties or {})
        if not destinations and found.alternate is not None:
            destinations = (Destination(found.alternate, is_queue=False),)
        for name, is_queue in destinations:
            if is_queue:
                queues[name] = None
            elif name not in seen:
                seen.add(name)
                waiting.append(name)
    return Route(tuple(queues), tuple(undecided))


class _Default:
    """The default exchange: every queue is bound to it by its own name."""

    by_key_alone = True

    def match(self, key: str, _properties: Mapping[str, Any]) -> Collection[Destination]:
        return (Destination(key, is_queue=True),)


DEFAULT_ROUTER: Router = _Default()


class _Direct:
    by_key_alone = True

    def __init__(self, bindings: Sequence[Binding]) -> None:
        self._by_key: dict[str, dict[Destination, None]] = {}
        for binding in bindings:
            self._by_key.setdefault(binding.key, {})[binding.destination] = None

    def match(self, key: str, _properties: Mapping[str, Any]) -> Collection[Destination]:
        return self._by_key.get(key, ())


class _Fanout:
    by_key_alone = True

    def __init__(self, bindings: Sequence[Binding]) -> None:
        self._all = dict.fromkeys(binding.destination for binding in bindings)

    def match(self, _key: str, _properties: Mapping[str, Any]) -> Collection[Destination]:
        return self._all


class _Topic:
    by_key_alone = True

    def __init__(self, bindings: Sequence[Binding]) -> None:
        self._patterns = [(topic_words(b.key), b.destination) for b in bindings]
        self._remembered: dict[str, Collection[Destination]] = {}

    def match(self, key: str, _properties: Mapping[str, Any]) -> Collection[Destination]:
        known = self._remembered.get(key)
        if known is not None:
            return known
        words = topic_words(key)
        found = dict.fromkeys(
            destination for pattern, destination in self._patterns if topic_matches(pattern, words)
        )
        if len(self._remembered) >= _REMEMBERED_KEYS:
            self._remembered.clear()
        self._remembered[key] = found
        return found


class _Headers:
    by_key_alone = False

    def __init__(self, bindings: Sequence[Binding]) -> None:
        self._wanted = [_Wanted(binding) for binding in bindings]

    def match(self, _key: str, properties: Mapping[str, Any]) -> Collection[Destination]:
        headers = properties.get("application_headers") or {}
        return dict.fromkeys(w.destination for w in self._wanted if w.fits(headers))


class _Wanted:
    """The headers that one binding asks for.

    ``x-match`` is ``all`` (the default) or ``any``; names that begin with ``x-`` count only with
    ``all-with-x`` and ``any-with-x``. A value of None asks for the header's presence.
    """

    __slots__ = ("_any", "_headers", "destination")

    def __init__(self, binding: Binding) -> None:
        self.destination = binding.destination
        mode = binding.arguments.get("x-match", "all")
        self._any = mode in ("any", "any-with-x")
        with_x = mode in ("all-with-x", "any-with-x")
        self._headers = [
            (name, value)
            for name, value in binding.arguments.items()
            if name != "x-match" and (with_x or not name.startswith("x-"))
        ]

    def fits(self, headers: Mapping[str, Any]) -> bool:
        answers = (
            name in headers and (value is None or _equal(headers[name], value))
            for name, value in self._headers
        )
        return any(answers) if self._any else all(answers)


def _equal(left: object, right: object) -> bool:
    """Compare two header values; AMQP's true is not its 1."""
    return left == right and isinstance(left, bool) == isinstance(right, bool)


class _Hash:
    """Consistent hashing: the binding key is the weight of its destination.

    What is hashed is the header named by the argument ``hash-header``, or the property named by
    ``hash-property``, or else the routing key. A message without it is spread by the property
    named by ``hash-fallback`` (``message_id`` unless said otherwise), and without that by its
    routing key; RabbitMQ sends all of those to one queue.
    """

    by_key_alone = False

    def __init__(self, arguments: Mapping[str, Any], bindings: Sequence[Binding]) -> None:
        self._header = arguments.get("hash-header")
        self._property = arguments.get("hash-property")
        self._fallback = arguments.get("hash-fallback", "message_id")
        weights: dict[str, int] = {}
        self._destinations: dict[str, Collection[Destination]] = {}
        for binding in bindings:
            # Members of the ring are the queues' names, so that whoever else spreads by a
            # ring of the same queues agrees; no queue's name can begin with a NUL and "exchange".
            destination = binding.destination
            member = destination.name if destination.is_queue else f"\0exchange {destination.name}"
            weights[member] = weights.get(member, 0) + hash_weight(binding.key)
            self._destinations[member] = (destination,)
        self._ring = Ring(weights) if weights else None

    def match(self, key: str, properties: Mapping[str, Any]) -> Collection[Destination]:
        if self._ring is None:
            return ()
        value: Any
        if self._header is not None:
            headers = properties.get("application_headers")
            value = headers.get(self._header) if headers else None
        elif self._property is not None:
            value = properties.get(self._property)
        else:
            value = key
        if value is None:
            value = properties.get(self._fallback)
            if value is None:
                value = key
        if not isinstance(value, (str, bytes)):
            value = str(value)
        return self._destinations[self._ring.lookup(value)]


def hash_weight(key: str) -> int:
    """Return the weight that a binding key of a consistent-hash exchange stands for.

    Raises ValueError where it is not a whole number of at least 1.
    """
    if not (key.isascii() and key.isdigit()) or int(key) < 1:
        raise ValueError(
            f"the binding key of a consistent-hash exchange is a weight, 1 or more, not {key!r}"
        )
    return int(key)
