"""From what --dedup says to a store, or to an error that says what to write."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from processes import printed_elsewhere
from worker.dedup.base import Answers, Batch, DedupStore, StoreOptions
from worker.dedup.memory import MemoryStore
from worker.dedup.open import open_store
from worker.dedup.sqlite import SqliteStore
from worker.errors import ConfigurationError, DedupUnavailable

OPTIONS = StoreOptions(timeout=0.2)


class Complete:
    """A whole store that derives from nothing."""

    tier = "told by the test"
    shared = False

    def __init__(self, url: str) -> None:
        self.url = url
        self.closed = False

    @classmethod
    def open(cls, url: str, options: StoreOptions) -> Complete:
        return cls(url)

    def apply(self, batch: Batch) -> Answers:
        return Answers([], [], [], [])

    def forget(self, records: Sequence[bytes]) -> set[bytes]:
        return set()

    def warnings(self) -> list[str]:
        return []

    def mark_parked(self, service: str, key: str, at: int) -> None:
        return

    def parked(self, service: str) -> Mapping[str, int]:
        return {}

    def unpark(self, service: str, key: str, upto: int) -> bool:
        return False

    def close(self) -> None:
        self.closed = True


class WithoutUnpark(Complete):
    unpark = None  # type: ignore[assignment]  # that is the point


class WithoutForget(Complete):
    forget = None  # type: ignore[assignment]  # that is the point


class Inheriting(DedupStore):
    """Has every method of the protocol by inheritance, and none that does anything."""


class WithoutTier(Complete):
    @property
    def tier(self) -> str:  # type: ignore[override]  # so that it may raise
        raise AttributeError("tier")


@pytest.fixture(autouse=True)
def acme(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("acme_stores")
    for store in (Complete, WithoutForget, WithoutUnpark, Inheriting, WithoutTier):
        setattr(module, store.__name__, store)
    module.__dict__["number"] = 7
    monkeypatch.setitem(sys.modules, "acme_stores", module)


def test_a_scheme_names_its_store(tmp_path: Path) -> None:
    assert isinstance(open_store("memory://open", OPTIONS), MemoryStore)
    store = open_store(f"sqlite:///{tmp_path}/ids.db", OPTIONS)
    assert isinstance(store, SqliteStore)
    store.close()
    for url in ("redis://127.0.0.1:1", "rediss://127.0.0.1:1", "unix:///nowhere"):
        with pytest.raises(DedupUnavailable):
            open_store(url, OPTIONS)


def test_a_class_is_named_by_its_module_and_gets_the_whole_text() -> None:
    for text in ("acme_stores:Complete", "acme_stores:Complete?table=ids&url=a://b"):
        store = open_store(text, OPTIONS)
        assert isinstance(store, Complete)
        assert store.url == text


def test_an_entry_point_names_a_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    information = tmp_path / "acme-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[qworker.dedup]\nacme = acme_stores:Complete\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert isinstance(open_store("acme://host", OPTIONS), Complete)
    with pytest.raises(ConfigurationError, match="did you mean acme://"):
        open_store("acne://host", OPTIONS)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("reddis://host", "no store is called reddis; did you mean redis"),
        ("sqllite:///file", "did you mean sqlite://"),
        ("mongodb://host", "there are memory://, sqlite://, redis://"),
        ("redis", "neither a URL .* nor the name of a class"),
        ("", "neither a URL"),
        ("acme_shops:Complete", "acme_shops cannot be imported: No module named"),
        ("acme_stores:Complet", "has no Complet; did you mean Complete"),
        ("acme_stores:number", "number is not a class"),
        ("acme_stores:WithoutUnpark", "WithoutUnpark has no method 'unpark'"),
        ("acme_stores:WithoutForget", "WithoutForget has no method 'forget'"),
        ("acme_stores:Inheriting", "Inheriting has no method 'open'"),
        ("acme_stores:WithoutTier", "has no attribute 'tier'"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_hint(text: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        open_store(text, OPTIONS)


def test_passwords_are_masked() -> None:
    for url in ("reddis://u:opensesame@h", "redis://u:opensesame@h?colour=red"):
        with pytest.raises(ConfigurationError) as told:
            open_store(url, OPTIONS)
        assert "opensesame" not in str(told.value)
        assert "***" in str(told.value)


@pytest.mark.parametrize("text", ["redis:/:hunter2@localhost/0", "user:hunter2@host:6379"])
def test_what_is_nearly_a_url_shows_no_password(text: str) -> None:
    with pytest.raises(ConfigurationError, match="neither a URL") as caught:
        open_store(text, OPTIONS)

    assert "hunter2" not in str(caught.value)


def test_processes_that_keep_nothing_in_redis_do_not_load_its_client() -> None:
    """It is a good part of what a process imports."""
    program = (
        "import sys, worker.supervisor.service, worker.supervisor.supervisor, worker.cli.checks;"
        "print(sorted(sys.modules.keys() & {'redis', 'psycopg'}))"
    )
    assert printed_elsewhere(program) == "[]"


def test_an_extra_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    for name in ("stores.postgres", "dedup.partitions", "dedup.upkeep", "dedup.postgres"):
        monkeypatch.delitem(sys.modules, f"worker.{name}", raising=False)
    with pytest.raises(
        ConfigurationError, match=r"pip install '\.\[postgres\]' at the top of qworker's clone"
    ) as told:
        open_store("postgresql://user:secret@host/database", OPTIONS)
    assert "secret" not in str(told.value)
