"""Steps that a relay can be made of: shard, deduplicate, enrich, and chains of these and functions.

::

    app.relay("order.placed", to="sharded.{name}", name="orders")(
        chain(deduplicate(by="order_id"), enrich(customer_of), shard(by="customer_id"))
    )

What they do to one message is decided by that message alone: none keeps anything in memory.
(The relay *queue*, by which a foreign publisher's messages find their shard, is ``relay.py``.)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from worker.errors import ConfigurationError
from worker.message import Relayed
from worker.payload import Unfit, fields_of, to_json
from worker.signature import is_async, takes_context

if TYPE_CHECKING:
    from worker.context import Context

#: A field of the payload (``user_id``, ``customer.address.city``), or a function of the payload
#: that gives the same whenever it is called.
By = str | Callable[[Any], Any]

#: What such a function raises where it meets a payload that has not what it looks for.
_LACKS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class Step:
    """A part of a relay, or the whole of it."""

    #: The name of the handler, where the relay is given none.
    name: str
    #: From (payload, context) to nothing, a message or several; a plain or a coroutine function.
    run: Callable[[Any, Context], Any]
    #: Messages of which this text is the same are one message. Raises Unfit.
    value: Callable[[Any], str] | None = None
    #: What orders a message whose publisher gave it no key. Raises Unfit.
    key: Callable[[Any], str] | None = None
    #: What comes after it gets the payload that came.
    keeps_payload: bool = False


def shard(by: By) -> Step:
    """Give each message the key that ``by`` finds; a payload without one is dead-lettered.

    A message that came without a key at all (from a foreign publisher) is ordered by it on its way
    through the relay too, unless an ``enrich`` or a function comes before.
    """
    key = partial(_key, _reader(by, "shard"))
    return Step(
        "shard",
        lambda payload, _: Relayed(payload, key=key(payload)),
        key=key,
        keeps_payload=True,
    )


def deduplicate(by: By) -> Step:
    """Drop messages of which ``by`` finds the same as of one before, whatever their ids are.

    The memory of ids remembers the value instead of the id: as long, and through the same
    crashes. The first message of a value stands for it, whatever becomes of it: also where it is
    filtered, or a dead letter. A payload without the value is dead-lettered.
    """
    value = partial(_value, _reader(by, "deduplicate"))

    def run(payload: Any, _: Context) -> Any:
        value(payload)  # what could not be remembered by its value must not pass
        return payload

    return Step("deduplicate", run, value=value, keeps_payload=True)


def enrich(function: Callable[..., Any]) -> Step:
    """Merge the mapping that ``function(payload)``, or ``(payload, context)``, returns.

    It may be a coroutine function. What it returns wins over what is there.
    """
    call = _caller(function, "enrich")

    async def run_async(payload: Any, context: Context) -> Any:
        return _merged(payload, await call(payload, context), function)

    def run(payload: Any, context: Context) -> Any:
        return _merged(payload, call(payload, context), function)

    return Step("enrich", run_async if is_async(call) else run)


def chain(*parts: Step | Callable[..., Any]) -> Step:
    """Run ``parts`` one after the other, each on the payload of every message that the last made.

    A part is one of this module, or a function as a relay has it. A message keeps the key, name
    and headers that an earlier part gave it, unless a later one says others. ``deduplicate``
    comes first: a message is looked up before anything is done with it.
    """
    steps = [_step(part) for part in parts]
    if not steps:
        raise ConfigurationError("chain(): at least one step")
    if any(step.value is not None for step in steps[1:]):
        raise ConfigurationError(
            "chain(...): deduplicate comes first, since a message is looked up before anything is"
            " done with it; what is to be done before that is a relay of its own"
        )

    def run(payload: Any, context: Context) -> list[Relayed]:
        flow = [Relayed(payload)]
        for step in steps:
            flow = [new for old in flow for new in _made(old, step.run(old.payload, context))]
        return flow

    async def run_async(payload: Any, context: Context) -> list[Relayed]:
        flow = [Relayed(payload)]
        for step in steps:
            flow, before = [], flow
            for old in before:
                result = step.run(old.payload, context)
                flow += _made(old, await result if inspect.isawaitable(result) else result)
        return flow

    untouched = [step for number, step in enumerate(steps) if _keep_payload(steps[:number])]
    return Step(
        "chain",
        run_async if any(is_async(step.run) for step in steps) else run,
        value=steps[0].value,
        key=next((step.key for step in untouched if step.key is not None), None),
        keeps_payload=_keep_payload(steps),
    )


def several(result: object) -> Iterable[Any]:
    """Return the messages that a relay returned: none, one or several, in order."""
    if result is None:
        return ()
    if isinstance(result, list | tuple | Iterator):
        return result
    return (result,)


def collected(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a coroutine function that gives everything an async generator function yields."""

    async def collect(*arguments: Any) -> list[Any]:
        return [message async for message in function(*arguments)]

    return collect


def _step(part: Step | Callable[..., Any]) -> Step:
    if isinstance(part, Step):
        return part
    return Step("function", _caller(part, "chain"))


def _caller(function: Callable[..., Any], told: str) -> Callable[[Any, Context], Any]:
    """Return ``function`` as one of (payload, context), a coroutine function where it is one."""
    name = getattr(function, "__name__", type(function).__name__)
    given: object = function
    if not callable(given) or inspect.isclass(given):
        raise ConfigurationError(f"{told}({given!r}): a function of the payload")
    with_context = takes_context(function, f"{told}({name})", bound=True)
    target = collected(function) if inspect.isasyncgenfunction(function) else function

    async def call_async(payload: Any, context: Context) -> Any:
        return await (target(payload, context) if with_context else target(payload))

    def call(payload: Any, context: Context) -> Any:
        return target(payload, context) if with_context else target(payload)

    return call_async if is_async(target) else call


def _made(old: Relayed, result: object) -> Iterator[Relayed]:
    """Yield what a step made of ``old``."""
    for one in several(result):
        new = one if isinstance(one, Relayed) else Relayed(one)
        headers = old.headers if new.headers is None else new.headers
        yield Relayed(new.payload, new.key or old.key, new.name or old.name, headers)


def _keep_payload(steps: list[Step]) -> bool:
    return all(step.keeps_payload for step in steps)


def _merged(payload: object, more: object, function: Callable[..., Any]) -> Mapping[str, Any]:
    if not isinstance(more, Mapping):
        name = getattr(function, "__name__", type(function).__name__)
        raise TypeError(f"enrich({name}): it returned {type(more).__name__}, not a mapping")
    return {**fields_of(payload), **more}


def _reader(by: By, told: str) -> Callable[[Any], Any]:
    """Return the function that finds in a payload what ``by`` says. It raises Unfit."""
    if isinstance(by, str) and all(by.split(".")):
        return partial(_dig, by)
    given: object = by
    if isinstance(by, str) or not callable(given) or is_async(by):
        raise ConfigurationError(
            f"{told}(by={by!r}): a field of the payload, as 'user_id' or 'user.id', or a plain"
            " function of the payload"
        )

    def read(payload: Any) -> Any:
        try:
            return by(payload)
        except _LACKS as error:
            text = f"{type(error).__name__}: {error}"
            raise Unfit(f"{told}(by=...) finds nothing in the payload: {text}") from None

    return read


def _dig(path: str, payload: Any) -> Any:
    """Return what lies at ``path``, which may lead through mappings and objects."""
    value = payload
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
    if value is None:
        raise Unfit(f"the payload has no {path!r}")
    return value


def _key(read: Callable[[Any], Any], payload: object) -> str:
    found = read(payload)
    if found is None or found == "" or isinstance(found, Mapping | list | tuple | set | bytes):
        raise Unfit(f"it is sharded by {found!r}; a key is a text or a number")
    return str(found)


def _value(read: Callable[[Any], Any], payload: object) -> str:
    found = read(payload)
    if found is None:
        raise Unfit("it is deduplicated by None; that is no value")
    return to_json(found, canonical=True).decode()
