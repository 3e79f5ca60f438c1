"""``manage.py qworker_purge``: forget old ids of the inbox, as ``clearsessions`` does sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand, CommandError
from worker.contrib.django.inbox import Inbox

if TYPE_CHECKING:
    from argparse import ArgumentParser

_DAY = 86_400.0


class Command(BaseCommand):
    """Forget ids that no message can come by again."""

    help = (
        "Forgets ids of the inbox that are older than so many days. Keep them as long as a message"
        " can come again: as long as --retention, as long as dead letters may be"
        " replayed, and as far back as the archive is."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take the age and the database."""
        parser.add_argument("--days", type=float, required=True, help="How old, at least.")
        parser.add_argument("--database", default="default", help="Its alias. [default: default]")

    def handle(self, *_: Any, **options: Any) -> None:
        """Forget, and say how many."""
        days = options["days"]
        if not days >= 0:  # also where it is no number
            raise CommandError(f"--days {days:g}: it has to be zero or more")
        removed = Inbox(options["database"]).purge(older_than=days * _DAY)
        self.stdout.write(f"{removed} ids forgotten")
