"""``manage.py qworker ...``: the command line of qworker, for the service of the project.

The process becomes that command line (exec), with what the project knows in its environment: the
settings' module, the path of modules, where the App is and where the outbox is. So signals, exit
codes and the processes of a service are those of ``qworker``, and a supervisor holds nothing of the
project's.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from django.core.management.base import BaseCommand, CommandError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SETTINGS = "DJANGO_SETTINGS_MODULE"
#: -P: the folder is not put on the path once more, and first.
_PROGRAM = ("-P", "-m", "worker.cli")


class Command(BaseCommand):
    """The command line of qworker for this project."""

    help = "qworker's command line for the service that settings.QWORKER_APP names."
    requires_system_checks: ClassVar[list[str]] = []

    def run_from_argv(self, argv: Sequence[str]) -> None:
        """Become ``qworker`` with these words; what manage.py understands itself is done by now."""
        understood = ArgumentParser(add_help=False, allow_abbrev=False)
        for option in ("--settings", "--pythonpath"):
            understood.add_argument(option)
        _, words = understood.parse_known_args(argv[2:])
        try:
            environ = environ_of(os.environ, sys.path)
        except CommandError as error:
            self.stderr.write(f"{type(error).__name__}: {error}")
            sys.exit(error.returncode)
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *_PROGRAM, *words], environ)  # noqa: S606 - no shell is wanted

    def handle(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse ``call_command``, whose caller would be gone."""
        raise CommandError("this process would become qworker: call it from a command line")


def environ_of(environ: Mapping[str, str], path: Sequence[str]) -> dict[str, str]:
    """Return the environment of ``qworker`` for this project; what is said there already stays.

    Raises CommandError where settings are in no module that another process could import.
    """
    if not environ.get(_SETTINGS):
        raise CommandError(f"other processes find the settings by {_SETTINGS} alone: set it")
    return {
        "QWORKER_APP": "worker.contrib.django.service",
        "QWORKER_OUTBOX_URL": "django://default",
        **environ,
        # What manage.py can import, its handlers can.
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
    }
