"""Runs a command; turns whatever it raises into words for its user and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from worker.cli.group import qworker
from worker.config import mask_url
from worker.errors import QworkerError, UsageError
from worker.supervisor.signals import release

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

EXIT_BUG = 1
EXIT_REFUSED = 1
EXIT_INTERRUPTED = 130

#: The command that has signals held until its own loop can act on them.
_HOLDS = "start"

#: There is no room for what is written; and none for this user, or for a file as large.
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))

_BUG = "this is a mistake in qworker or in an extension of it: please report it, with these lines"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the program's exit code; never raises.

    ``arguments`` are those of the process where they are left out. Errors are texts on standard
    error; a traceback is shown of exceptions alone that nobody foresaw.
    """
    words = sys.argv[1:] if arguments is None else arguments
    try:
        if [*words[:1]] != [_HOLDS]:
            release()
        answer = qworker.main(args=arguments, prog_name="qworker", standalone_mode=False)
        code = answer if isinstance(answer, int) else 0
    except SystemExit as error:  # click's answer to a reader of our output that went away
        code = error.code if isinstance(error.code, int) else EXIT_BUG
    except BaseException as error:  # noqa: BLE001 - the last one to be asked
        code = _tell(error, words)
    return _flush(code)


def _tell(error: BaseException, words: Sequence[str]) -> int:
    """Say on standard error what is wrong; return the exit code."""
    match error:
        case click.ClickException():
            _say(_usage(error))
            return error.exit_code
        case click.Abort() if not isinstance(error.__cause__, KeyboardInterrupt):
            _say("nothing was done")
            return EXIT_REFUSED
        case KeyboardInterrupt() | click.Abort():
            left = str(error.__cause__ or error)
            _say(f"interrupted: {left}" if left else "interrupted")
            return EXIT_INTERRUPTED
    leaves = [_foreseen(leaf, words) for leaf in _leaves(error)]
    told = [leaf for leaf in leaves if isinstance(leaf, QworkerError)]
    if len(told) < len(leaves):
        click.echo(mask_url("".join(traceback.format_exception(error)).rstrip()), err=True)
        _say(_BUG)
        return EXIT_BUG
    for each in told:
        if shown := getattr(each, "user_traceback", ""):
            click.echo(mask_url(shown), err=True)
        _say(str(each))
    return max(each.exit_code for each in told)


def _foreseen(error: BaseException, words: Sequence[str]) -> BaseException:
    """Return what ``error`` means where a full disk, or the command line itself, is its cause."""
    match error:
        case OSError() if error.errno in _FULL:
            where = f"{error.filename}: " if error.filename else ""
            return QworkerError(
                f"{where}what is written does not fit: {error.strerror}; make room, or write it"
                " elsewhere"
            )
        case UnicodeEncodeError():
            # Bytes of the command line that are no UTF-8 come as halves of surrogate pairs; files
            # may be called so, and nothing else.
            odd = error.object[error.start : error.end]
            for word in words:
                if odd and odd in word:
                    return UsageError(f"{word!r} is not UTF-8: nothing is called so")
    return error


def _usage(error: click.ClickException) -> str:
    text = error.format_message()
    context = getattr(error, "ctx", None)
    return text if context is None else f"{text}\nTry '{context.command_path} --help'."


def _say(text: str) -> None:
    with suppress(OSError):
        click.echo(f"qworker: {mask_url(text)}", err=True)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions of a group of groups; a single one yields itself."""
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error


def _flush(code: int) -> int:
    """Write what is buffered while a broken pipe can still be met in silence."""
    try:
        sys.stdout.flush()
    except OSError as error:
        if error.errno in _FULL and not code:
            code = _tell(error, ())
        # The interpreter flushes once more when it ends, and would say that this failed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code or EXIT_BUG
    return code
