"""What a relay adds to its handler: what the handler returns is published, as ``to`` says.

It goes the one way that there is for what handlers publish (``Context.publish``): under ids that
are derived from the message's, sent when the handler has returned, confirmed before the message
counts as done, with its key waiting until then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worker.errors import ConfigurationError
from worker.message import Command, Event, Relayed, key_of, schema_of
from worker.names import check_name
from worker.payload import Unfit, fields_of
from worker.relays import several
from worker.routing import is_pattern, overlap

if TYPE_CHECKING:
    from worker.context import Context
    from worker.message import Schema

_NAME = "{name}"
#: Stands for a name that is not known yet.
_ANY = "x"


class Relaying:
    """Publishes what one relay returns. Any thread.

    ``pattern`` is what the relay observes; ``told`` begins the text of an error. Raises
    ConfigurationError where ``to`` cannot be meant, or would come back to this relay.
    """

    def __init__(
        self,
        to: type[Event | Command] | str,
        *,
        service: str,
        pattern: str,
        told: str,
    ) -> None:
        schema = schema_of(to)
        if schema is None and not isinstance(to, str):
            raise ConfigurationError(
                f"{told}: to={to!r}; an Event or Command class, or a name, as 'sharded.{_NAME}'"
            )
        self._pattern = pattern
        self._kind: Any = to if schema is not None else None
        self._name = to if isinstance(to, str) else ""
        self._is_template = _NAME in self._name
        self._refuse_loop(schema, service, told)

    def publish(self, result: object, context: Context) -> None:
        """Publish what the relay returned for the message of ``context``: one or several.

        Raises TypeError or ValueError for what cannot be sent, and what an iterator raises.
        """
        for one in several(result):
            said = one if isinstance(one, Relayed) else Relayed(one)
            if self._kind is not None:
                context.publish(self._typed(said, context))
            else:
                context.publish(self._plain(said, context))

    def _typed(self, said: Relayed, context: Context) -> Relayed:
        kind = self._kind
        if said.name is not None:
            raise ValueError(f"it says name={said.name!r}, and its relay to={kind.__qualname__}")
        event = said.payload
        if type(event) is not kind:
            fields = fields_of(self._fit(event, context))
            moment = context.timestamp
            known = {} if moment is None else {"timestamp": moment}
            event = kind(**{**known, **fields})
        return Relayed(event, said.key or key_of(event) or context.key, headers=said.headers)

    def _plain(self, said: Relayed, context: Context) -> Relayed:
        payload = fields_of(self._fit(said.payload, context))
        name = self._name
        if said.name is not None:
            name = _checked(said.name)
            if overlap(name, self._pattern):
                raise ValueError(f"it says name={name!r}, which would come back to this relay")
        elif self._is_template:
            name = _checked(name.replace(_NAME, context.name))
        return Relayed(payload, said.key or context.key, name, said.headers)

    def _fit(self, payload: object, context: Context) -> object:
        """Return ``payload`` unless it is an event of a class that is not meant.

        The event that came is: its fields are sent on.
        """
        if schema_of(payload) is not None and payload is not context.event:
            wanted = self._kind.__qualname__ if self._kind is not None else repr(self._name)
            given = type(payload).__qualname__
            raise TypeError(f"it returned {given}, and its relay says to={wanted}")
        return payload

    def _refuse_loop(self, schema: Schema | None, service: str, told: str) -> None:
        """Raise ConfigurationError where what is published would come to this relay again."""
        if schema is not None and schema.to not in (None, service):
            return
        name = schema.name if schema is not None else self._name
        sample = name.replace(_NAME, _ANY)
        if is_pattern(sample) or "{" in sample or "}" in sample:
            raise ConfigurationError(
                f"{told}: to={name!r}; a name, in which {_NAME} stands for the name that came"
            )
        check_name(sample, f"{told}: to={name!r}")
        published = ".".join(map(_widened, name.replace(_NAME, self._pattern).split(".")))
        if overlap(published, self._pattern):
            raise ConfigurationError(
                f"{told}: what it publishes (to={name!r}) would come to it again, without end; let"
                f" it observe something that to={name!r} does not match"
            )


def _widened(word: str) -> str:
    """Return a word of a pattern, or what takes at least the same where it is half a wildcard."""
    if "#" in word:
        return "#"
    return "*" if "*" in word else word


def _checked(name: str) -> str:
    try:
        return check_name(name, "the name to publish")
    except ConfigurationError as error:
        raise Unfit(str(error)) from None
