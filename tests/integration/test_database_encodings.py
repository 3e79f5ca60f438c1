"""PostgreSQL databases that are not UTF-8, and clients that are told to be something else."""

from __future__ import annotations

from contextlib import closing

import psycopg
import pytest

from servers import PostgreSQL
from worker.archive.entry import Entry
from worker.archive.open import open_archive
from worker.dedup.base import StoreOptions
from worker.dedup.open import open_store
from worker.errors import ConfigurationError
from worker.leases.base import LeaseOptions
from worker.leases.open import open_leases

KEY = "k\u0142\u00f3dka \U0001f600"


def entry(key: str) -> Entry:
    return Entry("id-1", "user.created", key, 0, "{}", "{}", b"{}", at=1)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_an_archive_has_to_hold_every_text(postgres: PostgreSQL, encoding: str) -> None:
    url = postgres.fresh_url(encoding)

    with pytest.raises(ConfigurationError, match=rf"its encoding is {encoding}.*ENCODING 'UTF8'"):
        open_archive(url)

    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT to_regclass('qworker_archive_meta') IS NULL")
        assert found.fetchone() == (True,), "nothing is made there"


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_ids_and_leases_can_be_kept_in_any_database(postgres: PostgreSQL, encoding: str) -> None:
    url = postgres.fresh_url(encoding)

    with closing(open_store(url, StoreOptions())):
        pass
    with closing(open_leases(url, LeaseOptions())) as leases:
        assert leases.write("bank", "note", 0, KEY)
        assert leases.look("bank").documents["note"].text == KEY


def test_what_the_environment_says_of_texts_is_no_matter(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")

    for options in ("", "?client_encoding=SQL_ASCII"):
        with closing(open_archive(postgres_url + options)) as archive:
            archive.add([entry(KEY)])
            found = archive.find("id-1")
            assert found is not None
            assert found.key == KEY
