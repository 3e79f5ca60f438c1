"""Publishes lines, many at a time on their way, and knows at every moment how far it is for sure."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from worker.cli.compose import WrongMessage
from worker.cli.output import emit, note
from worker.errors import ConfirmTimeout, PublishError, Unreachable, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from worker.cli.compose import Composer, Wanted
    from worker.cli.lines import Source
    from worker.publisher import Publisher

#: Lines after which everything is waited for: what is not known to be published is never more.
_CHUNK = 1000
_MOST_TOLD = 10
_INTERRUPTED = 130


class _Refused(NamedTuple):
    """A line that the broker did not take."""

    number: int
    error: PublishError


class Stream:
    """Publishes the lines of ``source`` in order."""

    def __init__(
        self,
        publisher: Publisher,
        composer: Composer,
        read: Callable[[bytes], Wanted],
        source: Source,
    ) -> None:
        self._publisher = publisher
        self._composer = composer
        self._read = read
        self._source = source
        #: The lines that may not be confirmed yet, by the id of their message.
        self._under_way: dict[str, int] = {}
        self._next_line = 1
        self._last = 0

    def run(self, first: int) -> int:
        """Publish from line ``first`` on; return the exit code.

        Raises UsageError for a line that cannot be published, PublishError where the broker did
        not take one, Unreachable where no broker answers; the text says where to go on.
        """
        self._next_line, self._last = first, first - 1
        began = monotonic()
        try:
            with self._publisher, _progress(self._source) as progress:
                self._publish(first, progress)
        except KeyboardInterrupt:
            note(f"interrupted; {self._so_far()}")
            return _INTERRUPTED
        seconds = monotonic() - began
        done = self._publisher.confirmed
        rate = f"{done / seconds:.0f}/s" if seconds > 0 else "at once"
        emit(f"published {done} in {seconds:.2f} s, {rate}")
        return 0

    def _publish(self, first: int, progress: Callable[[int], None]) -> None:
        try:
            for number, line in self._source:
                if number < first:
                    continue
                try:
                    outgoing = self._composer.compose(self._read(line))
                except WrongMessage as error:
                    raise UsageError(f"line {number}: {error}") from error.__cause__
                self._under_way[outgoing.message_id] = self._last = number
                self._publisher.send(outgoing)
                if len(self._under_way) >= _CHUNK:
                    self._confirm()
                    progress(self._publisher.confirmed)
            self._confirm()
            progress(self._publisher.confirmed)
        except UsageError as error:
            self._confirm()
            raise UsageError(f"{error}\n{self._so_far()}") from error.__cause__
        except Unreachable as error:
            raise type(error)(f"{error}\n{self._so_far()}") from None
        except KeyboardInterrupt:
            self._confirm()
            raise

    def _confirm(self) -> None:
        """Wait until everything so far is confirmed."""
        try:
            self._publisher.flush()
        except PublishError as error:
            raise self._refusal([error]) from None
        except ExceptionGroup as group:
            errors = [e for e in group.exceptions if isinstance(e, PublishError)]
            raise self._refusal(errors) from None
        self._under_way.clear()
        self._next_line = self._last + 1

    def _refusal(self, errors: list[PublishError]) -> PublishError:
        """Return what to tell of lines that the broker did not take."""
        refused = sorted(self._refused(errors))
        told = [f"line {number}: {error}" for number, error in refused[:_MOST_TOLD]]
        if len(refused) > _MOST_TOLD:
            told.append(f"… and {len(refused) - _MOST_TOLD} more lines")
        unclear = [error for error in errors if isinstance(error, ConfirmTimeout)]
        told += map(str, unclear)
        if unclear:
            told.append(self._so_far())
        else:
            told.append(
                f"All other lines up to {self._last} are published. Publish what was refused by"
                f" itself, and go on with --from-line {self._last + 1}"
            )
        return type(errors[0])("\n".join(told))

    def _refused(self, errors: list[PublishError]) -> Iterator[_Refused]:
        for error in errors:
            text = str(error)
            for message_id, number in self._under_way.items():
                if text.startswith(f"{message_id}: "):
                    yield _Refused(number, error)

    def _so_far(self) -> str:
        number = self._next_line
        if not self._under_way:
            return f"Everything before line {number} is published; go on with --from-line {number}"
        return (
            f"Everything before line {number} is published, and perhaps lines {number} to"
            f" {self._last}: go on with --from-line {number} if they have ids of their own, which makes a second"
            " copy harmless"
        )


def _progress(source: Source) -> AbstractContextManager[Callable[[int], None]]:
    if not sys.stderr.isatty():
        return nullcontext(lambda _: None)
    # Costs as much time as all of a short command; a pipe does without.
    from worker.cli.progress import Bar  # noqa: PLC0415

    return Bar(source)
