"""Which letters a user means, and how they are shown."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from worker.cli.output import clean
from worker.routing import matches

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from worker.deadletters import Letter

COLUMNS = ("id", "name", "key", "handler", "reason", "time", "attempts")
_REASON_WIDTH = 100
_DUMP_BYTES = 512


@dataclass(frozen=True, slots=True)
class Filter:
    """What a letter must be to be meant; nothing said means all."""

    ids: tuple[str, ...] = ()
    handler: str | None = None
    name: str | None = None
    key: str | None = None
    reason: str | None = None

    def __bool__(self) -> bool:
        return bool(self.ids or self.handler or self.name or self.key is not None or self.reason)

    @property
    def only_key(self) -> bool:
        """Whether a key is asked for and nothing else."""
        rest = (self.ids, self.handler, self.name, self.reason)
        return self.key is not None and not any(rest)

    def takes(self, letter: Letter) -> bool:
        """Tell whether ``letter`` is meant."""
        return (
            (not self.ids or letter.id in self.ids)
            and (self.handler is None or letter.handler == self.handler)
            and (self.name is None or matches(self.name, letter.name))
            and (self.key is None or letter.key == self.key)
            and (self.reason is None or self.reason.lower() in letter.reason.lower())
        )


def row(letter: Letter) -> tuple[object, ...]:
    """Return the cells of one line of a list."""
    reason = letter.reason or letter.undecodable
    if len(reason) > _REASON_WIDTH:
        reason = reason[: _REASON_WIDTH - 1] + "…"
    attempts = letter.attempts or ""
    return letter.id, letter.name, letter.key, letter.handler, reason, letter.time, attempts


def facts(letter: Letter) -> dict[str, Any]:
    """Return what a list tells of a letter, for JSON."""
    return {
        "id": letter.id,
        "name": letter.name,
        "key": letter.key,
        "handler": letter.handler or None,
        "reason": letter.reason,
        "time": letter.time or None,
        "attempts": letter.attempts,
        "queue": letter.queue or None,
    }


def all_facts(letter: Letter) -> dict[str, Any]:
    """Return everything there is to tell of a letter, for JSON."""
    return {
        **facts(letter),
        "detail": letter.detail or None,
        "undecodable": letter.undecodable or None,
        "properties": dict(letter.properties),
        "headers": dict(letter.headers),
        **_body_facts(letter.body),
    }


def _body_facts(body: bytes) -> dict[str, Any]:
    """Return the body as JSON where it is JSON, else as text, else in hexadecimal."""
    try:
        return {"body": json.loads(body)}
    except (ValueError, RecursionError):
        pass
    try:
        return {"body_text": body.decode()}
    except UnicodeDecodeError:
        return {"body_hex": body.hex()}


def page(letter: Letter) -> Iterable[str]:
    """Yield everything there is to tell of a letter, in lines for people."""
    yield from _section("message", _facts_of(letter))
    if letter.detail:
        yield ""
        yield "traceback"
        yield from _indented(letter.detail)
    shown = {name: value for name, value in letter.headers.items() if not _is_shown(name)}
    for title, table in (("headers", shown), ("properties", letter.properties)):
        if table:
            yield ""
            yield from _section(title, [(str(k), v) for k, v in table.items()])
    yield ""
    yield f"body, {len(letter.body)} bytes"
    yield from _indented(_pretty(letter.body))


def _facts_of(letter: Letter) -> Sequence[tuple[str, object]]:
    told = {**facts(letter), "undecodable": letter.undecodable}
    return [(name, value) for name, value in told.items() if value]


def _is_shown(header: str) -> bool:
    return header.startswith("qw-dead-")


def _section(title: str, pairs: Sequence[tuple[str, object]]) -> Iterable[str]:
    width = max(len(name) for name, _ in pairs)
    yield title
    for name, value in pairs:
        yield f"  {clean(name).ljust(width)}  {clean(str(value))}"


def _indented(text: str) -> Iterable[str]:
    for line in text.splitlines():
        yield f"  {clean(line, keep=chr(9))}"


def _pretty(body: bytes) -> str:
    known = _body_facts(body)
    if "body" in known:
        return json.dumps(known["body"], ensure_ascii=False, indent=2)
    if "body_text" in known:
        return str(known["body_text"])
    more = f" … ({len(body) - _DUMP_BYTES} bytes more)" if len(body) > _DUMP_BYTES else ""
    return body[:_DUMP_BYTES].hex(" ", 2) + more
