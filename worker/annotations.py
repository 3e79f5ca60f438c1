"""What a handler says that it takes, against what it gets: only what is surely wrong is refused.

An annotation that is no class (a type variable, an alias), or that names what is not there yet
(under ``TYPE_CHECKING``), may be right; so may each class that is no event, and each union of which
one member may be. What a decorator hands on to the function that it wraps, nobody can tell.
"""

from __future__ import annotations

import inspect
import types
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from worker.context import Context
from worker.errors import ConfigurationError
from worker.message import Command, Event

_EVENTS = (Event, Command)


def check_annotations(  # noqa: PLR0913 - the facts of a handler
    call: Any,
    told: str,
    *,
    gets: object,
    bound: bool,
    with_context: bool,
    any_event: bool,
) -> None:
    """Raise ConfigurationError, which begins with ``told``, where an argument never gets its type.

    ``call`` is called as (event), or as (event, context) where it is ``with_context``. ``gets`` is
    what the event is: a class, None for a plain payload, or what nobody can tell. ``any_event``:
    somebody in between may hand on another one.
    """
    first, second = _declared(call, bound=bound)
    if _excludes(first, object, (Context,)):
        raise ConfigurationError(
            f"{told}: its first argument is declared as {_shown(first)}; a handler takes (event) or"
            " (event, context), in this order"
        )
    if with_context and _excludes(second, object, _EVENTS):
        raise ConfigurationError(
            f"{told}: its second argument is declared as {_shown(second)}, and gets the Context: a"
            " handler takes (event) or (event, context), in this order"
        )
    given = dict if gets is None else gets
    if any_event or not inspect.isclass(given) or not _excludes(first, given, _EVENTS):
        return
    shown, what = _shown(first), given.__qualname__
    if gets is None:
        what = f"the plain payload; name the class in place of its name, or say type={shown}"
    raise ConfigurationError(f"{told}: its argument is declared as {shown}, and gets {what}")


def _declared(call: Any, *, bound: bool) -> tuple[Any, Any]:
    """Return how the first two arguments are declared; Any where that cannot be told."""
    if hasattr(call, "__wrapped__"):
        return Any, Any
    try:
        parameters = inspect.signature(call).parameters.values()
    except (ValueError, TypeError):
        return Any, Any
    found = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    found = found if bound else found[1:]  # self
    names = _names_around(call)
    first, second, *_ = [*(_meant(p.annotation, names) for p in found), Any, Any]
    return first, second


def _meant(annotation: Any, names: dict[str, Any] | None) -> Any:
    """Return what an annotation means; Any where there is none, or it cannot be told."""
    if annotation is inspect.Parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    if names is None:
        return Any
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        return get_type_hints(holder, names)["it"]
    except Exception:  # noqa: BLE001 - it is any text, of names that may not be there yet
        return Any


def _names_around(call: Any) -> dict[str, Any] | None:
    """Return the names that annotations mean which are texts; None where they may be others.

    A function within a function means the names of that one too, which nobody can look up.
    """
    plain = getattr(call, "func", call)  # of a partial
    if not hasattr(plain, "__globals__"):
        plain = getattr(type(plain), "__call__", plain)  # noqa: B004 - an object that is called
    if "<locals>" in getattr(plain, "__qualname__", "<locals>"):
        return None
    return getattr(plain, "__globals__", None)


def _excludes(declared: Any, given: type, among: tuple[type, ...]) -> bool:
    """Tell whether ``declared`` is of ``among``, or all of a union is, and no ``given`` is it."""
    origin = get_origin(declared)
    if origin is Annotated:
        return _excludes(get_args(declared)[0], given, among)
    if origin is Union or origin is types.UnionType:
        members = [each for each in get_args(declared) if each is not types.NoneType]
        return all(_excludes(each, given, among) for each in members)
    return (
        origin is None
        and inspect.isclass(declared)
        and issubclass(declared, among)
        and not issubclass(given, declared)
    )


def _shown(declared: Any) -> str:
    return declared.__qualname__ if inspect.isclass(declared) else str(declared)
