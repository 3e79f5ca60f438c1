"""Publishes lines, many on their way at a time, and always knows how far it is for sure."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from worker.cli.compose import KEYLESS, WrongMessage
from worker.cli.output import emit, note
from worker.errors import ConfirmTimeout, PublishError, Unreachable, Unroutable, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from worker.cli.compose import Composer, Wanted
    from worker.cli.lines import Source
    from worker.publisher import Publisher

#: Lines after which everything is waited for: what is not known to be published is never more.
_CHUNK = 1000
_MOST_TOLD = 10
_INTERRUPTED = 130


class _UnderWay(NamedTuple):
    """A line whose message may not be confirmed yet."""

    number: int
    is_event: bool


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
        #: By the id of the message.
        self._under_way: dict[str, _UnderWay] = {}
        #: Events that were taken and that no queue is bound for.
        self._unheard = 0
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
        done = self._published
        rate = f"{done / seconds:.0f}/s" if seconds > 0 else "at once"
        emit(f"published {done} in {seconds:.2f} s, {rate}")
        if self._unheard:
            note(f"qworker: {self._unheard} of them: {self._composer.unheard}")
        for line in self._composer.strange():
            note(f"qworker: {line}")
        if self._composer.keyless:
            note(f"qworker: {self._composer.keyless} of them: {KEYLESS}")
        return 0

    @property
    def _published(self) -> int:
        return self._publisher.confirmed + self._unheard

    def _publish(self, first: int, progress: Callable[[int], None]) -> None:
        def catch_up() -> None:
            if self._under_way:
                self._confirm()
                progress(self._published)

        self._source.on_wait = catch_up
        try:
            for number, line in self._source:
                if number < first:
                    continue
                try:
                    outgoing = self._composer.compose(self._read(line))
                except WrongMessage as error:
                    self._last = number - 1
                    raise UsageError(f"line {number}: {error}") from error.__cause__
                self._last = number
                event = self._composer.is_event(outgoing)
                self._under_way[outgoing.message_id] = _UnderWay(number, event)
                self._publisher.send(outgoing)
                if len(self._under_way) >= _CHUNK:
                    catch_up()
            self._confirm()
            progress(self._published)
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
        errors: list[PublishError] = []
        try:
            self._publisher.flush()
        except PublishError as error:
            errors.append(error)
        except ExceptionGroup as group:
            errors += [error for error in group.exceptions if isinstance(error, PublishError)]
        refused = [r for r in map(self._place, errors) if r is not None]
        self._unheard += len(errors) - len(refused)
        if refused:
            raise self._refusal(sorted(refused, key=lambda each: each.number))
        self._under_way.clear()
        self._next_line = self._last + 1

    def _place(self, error: PublishError) -> _Refused | None:
        """Return the line that ``error`` speaks of; None for an event that nobody observes."""
        text = str(error)
        line = self._under_way.get(text.partition(": ")[0])
        if line is None:
            return _Refused(self._next_line, error)
        if line.is_event and isinstance(error, Unroutable):
            return None
        return _Refused(line.number, error)

    def _refusal(self, refused: list[_Refused]) -> PublishError:
        """Return what to tell of lines that the broker did not take."""
        unclear = [error for _, error in refused if isinstance(error, ConfirmTimeout)]
        if unclear:
            return ConfirmTimeout(f"{unclear[0]}\n{self._so_far()}")
        told = [f"line {number}: {error}" for number, error in refused[:_MOST_TOLD]]
        if len(refused) > _MOST_TOLD:
            told.append(f"… and {len(refused) - _MOST_TOLD} more lines")
        told.append(
            f"All other lines up to {self._last} are published. Publish what was refused by"
            f" itself, and go on with --from-line {self._last + 1}"
        )
        return type(refused[0].error)("\n".join(told))

    def _so_far(self) -> str:
        number = self._next_line
        if not self._under_way:
            return f"Everything before line {number} is published; go on with --from-line {number}"
        return (
            f"Everything before line {number} is published, and perhaps lines {number} to"
            f" {self._last}: go on with --from-line {number} if they have ids of their own, which"
            " makes a second copy harmless"
        )


def _progress(source: Source) -> AbstractContextManager[Callable[[int], None]]:
    if not sys.stderr.isatty():
        return nullcontext(lambda _: None)
    # Costs as much time as all of a short command; a pipe does without.
    from worker.cli.progress import Bar

    return Bar(source)
