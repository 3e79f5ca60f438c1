"""The integration with Django: types of columns, and what ``manage.py qworker`` hands on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from django.core.management.base import CommandError
from worker.contrib.django.columns import PlainField
from worker.contrib.django.management.commands.qworker import environ_of

_SETTINGS = {"DJANGO_SETTINGS_MODULE": "mysite.settings"}


def connection_of(vendor: str) -> SimpleNamespace:
    """Return what a column asks of a connection; the client of MySQL is not installed here."""
    return SimpleNamespace(
        vendor=vendor,
        data_types={"CharField": "varchar(%(max_length)s)"},
        ops=SimpleNamespace(quote_name=str),
    )


def test_mysql_compares_ids_by_their_bytes() -> None:
    told = PlainField().db_type(connection_of("mysql"))
    assert told == "varchar(255) CHARACTER SET ascii COLLATE ascii_bin"
    assert PlainField().db_type(connection_of("postgresql")) == "varchar(255)"


def test_a_migration_names_the_column_as_it_is_imported() -> None:
    _, path, _, options = PlainField().deconstruct()
    assert path == "worker.contrib.django.columns.PlainField"
    assert options == {"max_length": 255}


def test_the_command_line_is_told_where_app_and_outbox_are() -> None:
    environ = environ_of(_SETTINGS, ["", "/srv/site", "/srv/site/apps"])
    assert environ == {
        **_SETTINGS,
        "QWORKER_APP": "worker.contrib.django.service",
        "QWORKER_OUTBOX_URL": "django://default",
        "PYTHONPATH": "/srv/site:/srv/site/apps",
    }


def test_what_is_said_otherwise_stays() -> None:
    said = {**_SETTINGS, "QWORKER_APP": "mysite.service", "QWORKER_OUTBOX_URL": "django://other"}
    assert environ_of(said, ["/srv/site"]) == {**said, "PYTHONPATH": "/srv/site"}


def test_settings_that_are_in_no_module_are_refused() -> None:
    with pytest.raises(CommandError, match="DJANGO_SETTINGS_MODULE"):
        environ_of({}, [])
