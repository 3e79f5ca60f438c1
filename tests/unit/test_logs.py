"""Log records as people and machines read them, without passwords."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from worker.logs import (
    _MAX_TEXT,
    JsonFormatter,
    TextFormatter,
    configure_early,
    configure_logging,
)

URL = "amqp://bank:hunter2@broker:5672/"


def record(message: str = "hello %s", *args: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("worker", logging.WARNING, "x.py", 1, message, args, None)
    made.created, made.process = 1_700_000_000.5, 4711
    vars(made).update(extra)
    return made


def raised(text: str) -> logging.LogRecord:
    made = record("failed")
    error = RuntimeError(text)
    made.exc_info = (type(error), error, None)
    return made


def as_json(made: logging.LogRecord, service: str = "bank") -> dict[str, object]:
    line = JsonFormatter(service).format(made)
    assert "\n" not in line
    parsed: dict[str, object] = json.loads(line)
    return parsed


def test_json_has_the_facts_of_a_record() -> None:
    made = record("hello %s", "you", shard=3, message_id="id-1", handler="audit")

    assert as_json(made) == {
        "time": "2023-11-14T22:13:20.500Z",
        "level": "warning",
        "logger": "worker",
        "message": "hello you",
        "pid": 4711,
        "service": "bank",
        "shard": 3,
        "message_id": "id-1",
        "handler": "audit",
    }


def test_text_has_them_in_one_line() -> None:
    made = record("hello %s", "you", handler="audit", shard=3)

    assert TextFormatter("bank").format(made) == (
        "2023-11-14T22:13:20.500Z WARNING 4711 bank worker: hello you  shard=3 handler=audit"
    )


def test_a_users_own_extras_are_kept_and_cannot_replace_the_facts() -> None:
    parsed = as_json(record("x", order=5, pid="mine", service="mine", obj=object))

    assert parsed["order"] == 5
    assert parsed["pid"] == 4711
    assert parsed["service"] == "bank"
    assert parsed["obj"] == "<class 'object'>"


def test_a_traceback_is_a_field_of_json_and_lines_of_text() -> None:
    assert "RuntimeError: broken" in str(as_json(raised("broken"))["exception"])
    assert TextFormatter().format(raised("broken")).endswith("\nRuntimeError: broken")


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
@pytest.mark.parametrize(
    "made",
    [
        record(f"cannot reach {URL}"),
        record("cannot reach %s", URL),
        record("x", url=URL),
        record("x", nested={"urls": [URL]}),
        raised(f"cannot reach {URL}"),
    ],
    ids=["message", "argument", "extra", "nested", "exception"],
)
def test_passwords_are_masked_wherever_they_stand(
    formatter: logging.Formatter, made: logging.LogRecord
) -> None:
    text = formatter.format(made)

    assert "hunter2" not in text
    assert "bank:***@broker" in text


def test_a_text_that_is_too_long_loses_its_middle_and_shows_no_part_of_a_password() -> None:
    for lacking in range(len(URL) + 2):  # each cut goes through the password once
        head = "x" * (_MAX_TEXT // 2 - lacking)
        tail = " y" * (_MAX_TEXT // 4 - lacking)
        long = "z" * _MAX_TEXT
        text = str(as_json(record(f"{head} {URL} {long} {URL}{tail}end"))["message"])

        assert len(text) < _MAX_TEXT + 100
        assert text.endswith("end")
        assert not any(part in text for part in ("hunt", "ter2")), lacking


def test_a_value_that_has_no_text_does_not_lose_the_record() -> None:
    class Broken:
        def __str__(self) -> str:
            raise ValueError

    assert "Broken" in str(as_json(record("x", thing=Broken()))["thing"])


def test_values_that_contain_themselves_come_to_an_end() -> None:
    endless: list[object] = []
    endless.append(endless)

    assert as_json(record("x", endless=endless))["endless"]


def test_a_wrong_level_or_format_is_left_to_the_settings_to_tell(
    root: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWORKER_LOG_LEVEL", "warning")

    configure_early({"log_format": "xml"})
    assert root.level == logging.WARNING
    for level in ("loud", "fatal", "notset", "WARNING", 30):
        configure_early({"log_level": level})
        assert root.level == logging.INFO


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back afterwards."""
    logger = logging.getLogger()
    before, level = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:] = before
    logger.setLevel(level)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_text_and_a_pipe_json(root: logging.Logger) -> None:
    for stream, begins in ((Terminal(), "20"), (io.StringIO(), "{")):
        configure_logging(stream=stream)
        logging.getLogger("x").warning("hello")
        assert stream.getvalue().startswith(begins)


def test_configured_again_it_replaces_its_own_handler_and_leaves_others(
    root: logging.Logger,
) -> None:
    other = logging.NullHandler()
    root.addHandler(other)
    stream = io.StringIO()

    configure_logging("json", stream=stream)
    configure_logging("text", "warning", service="bank", stream=stream)
    logging.getLogger("x").info("not this")
    logging.getLogger("x").warning("hello")

    assert stream.getvalue().count("\n") == 1
    assert other in root.handlers
