"""JSON lines: each one a message to publish, or a bare payload."""

from __future__ import annotations

import gzip
import io
import select
import sys
import zlib
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import msgspec

from worker.cli.compose import Wanted, WrongMessage
from worker.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_LONGEST_LINE = 64 * 1024 * 1024


class _Envelope(msgspec.Struct, forbid_unknown_fields=True):
    """A line that says everything of its message."""

    name: str
    payload: msgspec.Raw = msgspec.Raw(b"{}")
    key: str | int | None = None
    id: str | int | None = None
    to: str | None = None
    headers: dict[str, str | int | float | bool | None] = msgspec.field(default_factory=dict)
    priority: int | None = None
    transient: bool = False


_envelope = msgspec.json.Decoder(_Envelope)
_object = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True, slots=True)
class Bare:
    """How lines that are payloads alone become messages."""

    name: str
    #: Paths of fields, such as ``user.id``.
    key_field: str | None = None
    id_field: str | None = None
    to: str | None = None


def reader(
    bare: Bare | None, headers: Mapping[str, Any], priority: int | None, *, transient: bool
) -> Callable[[bytes], Wanted]:
    """Return the function from a line to what it asks for; it raises WrongMessage.

    The other arguments hold for lines that do not say otherwise. The payload's bytes stay as
    they are in the line.
    """

    def read_envelope(line: bytes) -> Wanted:
        try:
            given = _envelope.decode(line)
            payload = bytes(given.payload)
            payload.decode()  # which msgspec leaves to whoever reads it
        except msgspec.ValidationError as error:
            raise WrongMessage(f"{error}{_hint(line)}") from None
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise WrongMessage(f"not JSON: {error}") from None
        return Wanted(
            name=given.name,
            payload=payload,
            key=None if given.key is None else str(given.key),
            id=None if given.id is None else str(given.id),
            to=given.to,
            headers={**headers, **given.headers} if headers else given.headers,
            priority=priority if given.priority is None else given.priority,
            transient=transient or given.transient,
        )

    def read_payload(line: bytes) -> Wanted:
        assert bare is not None  # noqa: S101 - chosen below
        try:
            payload = _object.decode(line)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise WrongMessage(f"not a JSON object: {error}") from None
        return Wanted(
            name=bare.name,
            payload=line,
            key=_field(payload, bare.key_field, "key"),
            id=_field(payload, bare.id_field, "id"),
            to=bare.to,
            headers=headers,
            priority=priority,
            transient=transient,
        )

    return read_envelope if bare is None else read_payload


def _field(payload: Mapping[str, Any], path: str | None, what: str) -> str | None:
    """Return what lies at ``path``; raise WrongMessage where nothing fit lies there."""
    if path is None:
        return None
    value: Any = payload
    for step in path.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    if value is None or value == "" or isinstance(value, bool | float | dict | list):
        raise WrongMessage(f"its field {path!r} is {value!r}; the {what} is a text or a number")
    return str(value)


def _hint(line: bytes) -> str:
    """Say what a line that is no envelope may have been meant as."""
    try:
        fields = set(_object.decode(line))
    except (msgspec.MsgspecError, ValueError):
        return ""
    for name in sorted(fields - set(_Envelope.__struct_fields__)):
        near = get_close_matches(name, _Envelope.__struct_fields__, n=1)
        if near:
            return f"; did you mean {near[0]!r}?"
    return "" if "name" in fields else "; for lines that are bare payloads say --name NAME"


class Source:
    """The lines of a file (``.gz`` is unpacked) or of standard input (``-``)."""

    def __init__(self, place: str) -> None:
        self._raw: IO[bytes] = sys.stdin.buffer if place == "-" else _open(place)
        self._lines = self._raw
        #: Called before it waits for whoever writes to standard input; what it raises is raised.
        self.on_wait: Callable[[], None] = lambda: None
        if place == "-" and (raw := _unbuffered(self._raw)) is not None:
            self._lines = io.BufferedReader(_Pipe(raw, lambda: self.on_wait()))  # noqa: PLW0108 - set later
        #: Bytes of the file; None where nobody knows.
        self.size: int | None = None
        if place != "-" and Path(place).is_file():
            self.size = Path(place).stat().st_size
        if place.endswith(".gz"):
            self._lines = cast("IO[bytes]", gzip.GzipFile(fileobj=self._raw))

    @property
    def position(self) -> int:
        """How many bytes of the file were read."""
        return self._raw.tell() if self.size is not None else 0

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """Yield (line number, line) for every line that is not empty.

        Raises UsageError where the file cannot be read to its end.
        """
        number = 0
        try:
            while line := self._lines.readline(_LONGEST_LINE):
                number += 1
                if stripped := line.strip():
                    yield number, stripped
        except (OSError, EOFError, zlib.error) as error:
            raise UsageError(f"line {number + 1} cannot be read: {error}") from None

    def close(self) -> None:
        """Close the file."""
        if self._raw is not sys.stdin.buffer:
            self._raw.close()


class _Pipe(io.RawIOBase):
    """Reads another raw stream, and calls ``on_wait`` where nothing is there to be read yet."""

    def __init__(self, raw: io.RawIOBase, on_wait: Callable[[], None]) -> None:
        self._raw = raw
        self._on_wait = on_wait

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        ready, _, _ = select.select([self._raw], [], [], 0)
        if not ready:
            self._on_wait()
        return self._raw.readinto(buffer)


def _unbuffered(stream: IO[bytes]) -> io.RawIOBase | None:
    """Return what is below a buffered stream of the system's; None where it is none of these."""
    raw = getattr(stream, "raw", None)
    return raw if isinstance(raw, io.FileIO) else None


def _open(place: str) -> IO[bytes]:
    try:
        return io.BufferedReader(io.FileIO(place), 256 * 1024)
    except OSError as error:
        raise UsageError(f"{place}: {error.strerror or error}") from None
