"""Settings of Django for processes that tests start, and for their own: databases by their URLs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import django
import pymysql
from django.conf import settings

#: Seconds that a write to a file waits for those of other threads and processes.
_BUSY = 60


def configuration(url: str) -> dict[str, Any]:
    """Return a database's settings of Django, by its URL for SQLAlchemy."""
    parsed = urlsplit(url)
    if parsed.scheme.startswith("sqlite"):
        engine = "django.db.backends.sqlite3"
        return {"ENGINE": engine, "NAME": parsed.path[1:], "OPTIONS": {"timeout": _BUSY}}
    kind = "mysql" if parsed.scheme.startswith("mysql") else "postgresql"
    return {
        "ENGINE": f"django.db.backends.{kind}",
        "NAME": parsed.path[1:],
        "USER": parsed.username or "",
        "PASSWORD": parsed.password or "",
        "HOST": parsed.hostname or "",
        "PORT": parsed.port or "",
    }


def configure(databases: Mapping[str, Any]) -> None:
    """Set Django up in this process, once."""
    if settings.configured:
        return
    pymysql.install_as_MySQLdb()  # the name that Django looks for
    settings.configure(
        INSTALLED_APPS=["worker.contrib.django"],
        DATABASES=dict(databases),
        # Another one than that of the tables, which have to be as they are.
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
        SECRET_KEY="of the tests",
        USE_TZ=True,
    )
    django.setup()
