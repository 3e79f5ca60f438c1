"""A service that observes events by the shape of their names, and notes them in ``heard``."""

from pathlib import Path
from threading import Lock

from worker import App, Context, Event, Reject, Retry

app = App("words")
_lock = Lock()


class OneWord(Event, name="word", key="key"):
    """It observes this."""

    key: str


class TwoWords(Event, name="two.words", key="key"):
    """It does not observe this."""

    key: str


@app.on("*")
def hear(event: dict[str, str], context: Context) -> None:
    """Note the name."""
    _note(context)


@app.on("user.*")
def mend(event: dict[str, str], context: Context) -> None:
    """Note the name, unless the event has a fault."""
    match event:
        case {"fault": "once"} if context.attempt == 1:
            raise Retry(delay=0.1)
        case {"fault": "for ever"}:
            raise Reject("it has a fault")
    _note(context)


def _note(context: Context) -> None:
    with _lock, Path("heard").open("a") as file:
        file.write(f"{context.name}\n")
