"""Log records as text for people and as JSON for machines, with no password in either.

Both formatters carry the same facts: time (UTC), level, logger, message, pid, service, and
whatever a record was given by ``extra`` (``shard``, ``message_id``, ``handler`` and the user's
own). Passwords in URLs are masked in every text of a record, tracebacks included, so that a broker
URL in an exception of a library does not end in a log store.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from worker.config import FIELDS, mask_url

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping
    from typing import TextIO

#: What every LogRecord has of itself; everything else in its ``__dict__`` came by ``extra``.
_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

#: The extras that the runtime itself gives, in the order in which they are written.
_KNOWN_EXTRAS = ("shard", "message_id", "handler")

_MAX_DEPTH = 6
#: Characters of a text, the most that are written: masking takes time, and the I/O thread with it.
_MAX_TEXT = 64 * 1024
#: Characters within which a password that was cut ends.
_MAX_PASSWORD = 4096


class HandlersLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger for handlers. It keeps what a call gives by ``extra``; logging's own drops that."""

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        """Return both as they are."""
        return msg, kwargs


class TextFormatter(logging.Formatter):
    """One line a record: ``time LEVEL pid service logger: message  name=value …``."""

    def __init__(self, service: str = "") -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text; a traceback follows on lines of its own."""
        head = f"{_time(record)} {record.levelname:<7} {record.process}"
        if self._service:
            head += f" {self._service}"
        text = f"{head} {record.name}: {record.getMessage()}"
        # The runtime's events already say in words what their ``event`` extra holds.
        extras = {name: value for name, value in _extras(record).items() if name != "event"}
        if extras:
            text += "  " + " ".join(f"{name}={value}" for name, value in extras.items())
        for trace in _traces(self, record).values():
            text += f"\n{trace}"
        return _mask(text)


class JsonFormatter(logging.Formatter):
    """One JSON object a line. Values that JSON does not know are written as their text."""

    def __init__(self, service: str = "") -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        facts: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        if self._service:
            facts["service"] = self._service
        for name, value in _extras(record).items():
            facts.setdefault(name, value)
        facts.update(_traces(self, record))
        return json.dumps(_masked(facts), ensure_ascii=False, separators=(",", ":"))


def configure_logging(
    log_format: str = "",
    log_level: str = "info",
    *,
    service: str = "",
    stream: TextIO | None = None,
) -> None:
    """Send every record of this process at ``log_level`` and above to ``stream`` (standard error).

    ``log_format`` is ``text``, ``json``, or empty: text if the stream is a terminal, else JSON.
    Called again it replaces what it installed before; handlers of the user's own stay.
    """
    stream = sys.stderr if stream is None else stream
    if not log_format:
        log_format = "text" if stream.isatty() else "json"
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter(service) if log_format == "text" else JsonFormatter(service))
    root = logging.getLogger()
    for installed in root.handlers[:]:
        if isinstance(installed.formatter, TextFormatter | JsonFormatter):
            root.removeHandler(installed)
    root.addHandler(handler)
    root.setLevel(log_level.upper())
    # It warns of each message that arrives while a channel closes: at every hand-over.
    logging.getLogger("amqp").setLevel(logging.ERROR)


def configure_early(options: Mapping[str, object]) -> None:
    """Configure logging by what is known before the settings are: options and environment.

    A value that is wrong is not used; the settings will tell of it.
    """
    log_format = str(options.get("log_format") or os.environ.get("QWORKER_LOG_FORMAT", ""))
    log_level = str(options.get("log_level") or os.environ.get("QWORKER_LOG_LEVEL", ""))
    configure_logging(
        log_format if log_format in FIELDS["log_format"].metadata["choices"] else "",
        log_level if log_level in FIELDS["log_level"].metadata["choices"] else "info",
    )


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _extras(record: logging.LogRecord) -> dict[str, object]:
    given = {name: value for name, value in vars(record).items() if name not in _OWN_FIELDS}
    known = {name: given.pop(name) for name in _KNOWN_EXTRAS if name in given}
    return {name: value for name, value in (known | given).items() if value is not None}


def _traces(formatter: logging.Formatter, record: logging.LogRecord) -> dict[str, str]:
    """Return the traceback and the stack of a record, where it has them."""
    found = {}
    if record.exc_info and record.exc_info[0] is not None:
        found["exception"] = formatter.formatException(record.exc_info)
    elif record.exc_text:
        found["exception"] = record.exc_text
    if record.stack_info:
        found["stack"] = formatter.formatStack(record.stack_info)
    return found


def _masked(value: object, depth: int = 0) -> object:
    """Return ``value`` as JSON knows it, the passwords in its texts masked."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth < _MAX_DEPTH:
        if isinstance(value, dict):
            return {_mask(str(key)): _masked(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [_masked(item, depth + 1) for item in value]
    return _mask(value if isinstance(value, str) else _text(value))


def _mask(text: str) -> str:
    """Return ``text`` with its passwords masked, without its middle where it is too long."""
    if len(text) <= _MAX_TEXT:
        return mask_url(text)
    kept = _MAX_TEXT // 2
    # Either cut may go through a password: one ends at the next @, the other there.
    head = mask_url(f"{text[:kept]}@").removesuffix("@")
    tail = text[-kept:]
    tail = mask_url(tail[tail.find("@", 0, _MAX_PASSWORD) + 1 :])
    return f"{head}… ({len(text) - 2 * kept} characters) …{tail}"


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001 - a broken __str__ must not lose the record
        return f"<{type(value).__name__} without a text: {type(error).__name__}>"
