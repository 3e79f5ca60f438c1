"""Times and durations as people write them on a command line."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from worker.archive.entry import microseconds, moment_of

if TYPE_CHECKING:
    from collections.abc import Callable

_DURATION = re.compile(r"(?P<number>[0-9]{1,9}(?:\.[0-9]{1,6})?)(?P<unit>[smhdw])")
#: 9,999 years: no calendar goes further back.
_LONGEST = timedelta(days=365 * 9999)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def duration_of(text: str) -> timedelta | None:
    """Return what ``90s``, ``15m``, ``2h``, ``7d`` or ``4w`` mean; None for anything else.

    Raises OverflowError for what is longer than calendars are.
    """
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        return None
    length = timedelta(seconds=float(found["number"]) * _SECONDS[found["unit"]])
    if length > _LONGEST:
        raise OverflowError(f"{text} is longer than {_LONGEST}")
    return length


class Moment(click.ParamType):  # type: ignore[type-arg]  # releases before 8.5 have no argument
    """A time, in microseconds since 1970: ISO 8601, UTC where it says no zone; or how long ago."""

    name = "time"

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the time; fail with what would do."""
        if isinstance(value, int):
            return value
        text = str(value)
        try:
            ago = duration_of(text)
            if ago is not None:
                return microseconds(self._now() - ago)
            moment = datetime.fromisoformat(text)
            return microseconds(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is no time: write 2026-01-31, 2026-01-31T12:00:00+02:00 (UTC where no"
                " zone is said), or how long ago, as 90s, 15m, 2h, 7d",
                param,
                ctx,
            )


class Duration(click.ParamType):  # type: ignore[type-arg]  # as above
    """A length of time, in seconds."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the seconds; fail with what would do."""
        if isinstance(value, float):
            return value
        try:
            found = duration_of(str(value))
        except OverflowError:
            self.fail(f"{value!r} is too long: no archive goes that far back", param, ctx)
        if found is None:
            self.fail(f"{value!r} is no length of time: write 90s, 15m, 2h, 7d or 4w", param, ctx)
        return found.total_seconds()


def shown(moment: int | None) -> str:
    """Return a time as it is printed: UTC, to the millisecond."""
    if moment is None:
        return ""
    try:
        return moment_of(moment).isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00")
    except OverflowError:  # a publisher's clock
        return str(moment)
