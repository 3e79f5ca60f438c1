"""A handler that says it takes something else than it gets is refused; what may be right is not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import TYPE_CHECKING, Annotated, Any, Optional, Protocol, TypeVar, Union

import pytest

from worker import App, Command, Context, Event
from worker.errors import ConfigurationError

if TYPE_CHECKING:
    from decimal import Decimal as NotThere


class Deposited(Event, name="user.deposited"):
    user_id: str


class Withdrawn(Event, name="user.withdrawn"):
    user_id: str


class Corrected(Deposited, name="user.corrected"):
    pass


class Pay(Command, name="bank.pay", to="bank"):
    pass


class HasUser(Protocol):
    user_id: str


E = TypeVar("E", bound=Event)
Alias = Union[Withdrawn, "Deposited"]


def another(event: Withdrawn) -> None: ...
def a_subclass(event: Corrected) -> None: ...
def a_command(event: Pay) -> None: ...
def others(event: Withdrawn | Pay | None, context: Context) -> None: ...
def optional(event: Optional[Withdrawn]) -> None: ...  # noqa: UP045 - as users write it
def annotated(event: Annotated[Withdrawn, "noted"]) -> None: ...
def beside_what_is_not_there(event: Withdrawn, context: NotThere) -> None: ...
async def a_coroutine(event: Withdrawn) -> None: ...


class Keeper:
    def handle(self, event: Withdrawn, context: Context) -> None: ...


REFUSED: list[Any] = [
    another, a_subclass, a_command, others, optional, annotated, beside_what_is_not_there,
    a_coroutine, Keeper,
]  # fmt: skip


@pytest.mark.parametrize("handler", REFUSED, ids=lambda handler: handler.__name__)
def test_an_event_of_another_class_is_refused(handler: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"is declared as .*, and gets Deposited$"):
        App("bank").on(Deposited, name="it")(handler)


def swapped(context: Context, event: Deposited) -> None: ...
def context_alone(context: Context) -> None: ...
def second_is_an_event(event: Any, other: Deposited) -> None: ...


@pytest.mark.parametrize("handler", [swapped, context_alone, second_is_an_event])
@pytest.mark.parametrize("what", [Deposited, "user.*"])
def test_the_context_comes_second(handler: Any, what: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"\(event, context\), in this order"):
        App("bank").on(what)(handler)


def plain(event: Deposited) -> None: ...


def test_a_name_or_pattern_brings_the_plain_payload() -> None:
    with pytest.raises(ConfigurationError, match="the plain payload; name the class in place"):
        App("bank").on("user.*")(plain)
    with pytest.raises(ConfigurationError, match="and gets Withdrawn"):
        App("bank").on("user.*", type=Withdrawn)(plain)
    App("bank").on("user.*", type=Deposited)(plain)
    App("bank").on("user.*", type=Corrected)(plain)


def itself(event: Deposited, context: Context) -> None: ...
def its_base(event: Event) -> None: ...
def one_of_several(event: Withdrawn | Deposited) -> None: ...
def an_alias(event: Alias) -> None: ...
def a_protocol(event: HasUser) -> None: ...
def anything(event: Any, context: Any) -> None: ...
def an_object(event: object) -> None: ...
def a_variable(event: E) -> None: ...
def without(event, context) -> None: ...  # type: ignore[no-untyped-def] # noqa: ANN001 - as users write it
def what_is_not_there(event: NotThere) -> None: ...
def no_expression(event: "an event") -> None: ...  # type: ignore[valid-type] # noqa: F722 - as above
def a_dict(event: dict[str, Any]) -> None: ...
def a_default(event: Deposited, other: Withdrawn | None = None) -> None: ...
def all_of_them(*args: Withdrawn) -> None: ...


@wraps(another)
def wrapped(event: Deposited) -> None:
    another(Withdrawn(user_id=event.user_id))


class ByCall:
    def __call__(self, event: Deposited) -> None: ...


RIGHT: list[Any] = [
    itself, its_base, one_of_several, an_alias, a_protocol, anything, an_object, a_variable,
    without, what_is_not_there, no_expression, a_dict, a_default, all_of_them, wrapped, ByCall(),
    partial(itself), lambda event: None,
]  # fmt: skip


@pytest.mark.parametrize("handler", RIGHT, ids=lambda handler: getattr(handler, "__name__", ""))
def test_what_may_be_right_is_taken(handler: Any) -> None:
    App("bank").on(Deposited, name="it")(handler)


def test_a_text_that_may_mean_a_local_class_is_taken() -> None:
    class Withdrawn(Event, name="local.withdrawn"):
        pass

    def handler(event: Withdrawn) -> None: ...

    App("bank").on(Withdrawn)(handler)


def test_a_middleware_may_hand_on_another_event() -> None:
    def upcast(context: Context, call_next: Callable[[Context], Any]) -> Any:
        context.event = Withdrawn(user_id=context.event.user_id)
        return call_next(context)

    app = App("bank")
    app.use(upcast)
    app.on(Deposited)(another)
    with pytest.raises(ConfigurationError, match="in this order"):
        app.on(Deposited)(swapped)


def test_a_relay_is_looked_at_too() -> None:
    with pytest.raises(ConfigurationError, match="and gets Deposited"):
        App("bank").relay(Deposited, to="seen.it")(another)
