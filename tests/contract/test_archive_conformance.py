"""Every archive keeps the same promises: one body for SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worker.archive import queries
from worker.archive.base import Archive, ArchiveOptions, NoArchive, Tally
from worker.archive.entry import Entry
from worker.archive.open import open_archive
from worker.archive.removals import removals_of
from worker.archive.selection import Selection
from worker.archive.walk import count_all, pages
from worker.routing import matches

EVERYTHING = Selection()
WORDS = st.sampled_from(["user", "a", "B", "x-1", "", "é", "$", "[z]", r"\d", "a\n"])
NAMES = st.lists(WORDS, min_size=1, max_size=4).map(".".join).filter(bool)
PATTERN_WORDS = st.one_of(WORDS, st.sampled_from(["*", "#"]))
PATTERNS = st.lists(PATTERN_WORDS, min_size=1, max_size=4).map(".".join).filter(bool)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/archive.db"
    found: str = request.getfixturevalue("postgres_url")
    return found


@pytest.fixture
def archive(url: str) -> Iterator[Archive]:
    with closing(open_archive(url)) as opened:
        yield opened


def entry(number: int, **facts: Any) -> Entry:
    plain = Entry(
        id=f"id-{number}",
        name="user.deposited",
        key=f"u{number % 3}",
        time=1_000_000 * number,
        headers="{}",
        properties="{}",
        body=b'{"amount": %d}' % number,
        at=2_000_000 * number,
    )
    return plain._replace(**facts)


def read(archive: Archive, selection: Selection = EVERYTHING) -> list[Entry]:
    found = pages(archive, selection, *archive.span(selection))
    return [each for page in found for each in page.entries]


def ids(archive: Archive, selection: Selection = EVERYTHING) -> list[str]:
    return [each.id for each in read(archive, selection)]


def test_who_only_reads_makes_none(url: str) -> None:
    reading = ArchiveOptions(creates=False)
    for _ in range(2):  # nor did the first one
        with pytest.raises(NoArchive, match="nothing was archived there"):
            open_archive(url, reading)
    with closing(open_archive(url)) as archive:
        archive.add([entry(1)])
    with closing(open_archive(url, reading)) as archive:
        assert [found.id for found in read(archive)] == ["id-1"]


def test_what_was_added_is_read_as_it_was_and_in_its_order(archive: Archive) -> None:
    odd = entry(7, key=None, headers='{"a": "\\u0000"}', body=b' {"b": "\xc3\xa9"}\n')
    given = [entry(3), odd, entry(1)]

    assert archive.add(given) == 3

    found = read(archive)
    assert [each._replace(seq=0) for each in found] == given
    assert found[0].seq < found[1].seq < found[2].seq


def test_it_is_there_for_whoever_opens_it_later(url: str) -> None:
    with closing(open_archive(url)) as first:
        first.add([entry(1)])
    with closing(open_archive(url)) as second:
        assert ids(second) == ["id-1"]


def test_an_id_that_is_there_stays_as_it_is_and_where_it_is(archive: Archive) -> None:
    archive.add([entry(1), entry(2)])

    assert archive.add([entry(3), entry(1, body=b"{}"), entry(3)]) == 1

    assert ids(archive) == ["id-1", "id-2", "id-3"]
    found = archive.find("id-1")
    assert found is not None
    assert found.body == entry(1).body


def test_what_is_not_there_is_not_found(archive: Archive) -> None:
    assert archive.find("nobody") is None
    assert archive.span(EVERYTHING) == (0, 0)
    assert archive.span(Selection(since=1)) == (0, 0)
    assert archive.size()[0] == 0
    assert archive.add([]) == 0


def test_events_are_chosen_by_key_name_and_time(archive: Archive) -> None:
    archive.add(
        [
            entry(1, name="user.created"),
            entry(2, name="user.deposited", key="é"),
            entry(3, name="user.deposited", key=None),
            entry(4, name="order.paid", key="é"),
            entry(5, name="user.deposited.late", key="é"),
        ]
    )

    def chosen(*names: str, **facts: Any) -> list[int]:
        selection = Selection(names, **facts)
        return [int(each.removeprefix("id-")) for each in ids(archive, selection)]

    assert chosen("user.deposited") == [2, 3]
    assert chosen("user.*") == [1, 2, 3]
    assert chosen("user.#") == [1, 2, 3, 5]
    assert chosen("order.paid", "*.created") == [1, 4]
    assert chosen("order.paid", "user.created") == [1, 4]
    assert chosen("nothing") == []
    assert chosen(key="é") == [2, 4, 5]
    assert chosen("user.#", key="é") == [2, 5]
    assert chosen(since=2_000_000) == [2, 3, 4, 5]
    assert chosen(until=2_000_000) == [1]
    assert chosen(since=2_000_000, until=5_000_000, key="é") == [2, 4]
    assert chosen(since=9_000_000) == []


def test_the_places_of_a_time_are_found_some_at_a_time(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "_TIMED", 2)
    times = [5, 3, 9, 3, 3, 7, 1]
    archive.add([entry(n, time=time) for n, time in enumerate(times)])
    place = {each.id: each.seq for each in read(archive)}

    for since in (None, *range(11)):
        for until in (None, *range(11)):
            meant = [
                place[f"id-{n}"]
                for n, time in enumerate(times)
                if (since is None or since <= time) and (until is None or time < until)
            ]
            after, upto = archive.span(Selection(since=since, until=until))
            if meant:
                assert (after, upto) == (min(meant) - 1, max(meant)), (since, until)
            else:
                assert after >= upto, (since, until)


@given(names=st.lists(NAMES, min_size=1, max_size=8, unique=True), patterns=st.data())
@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_patterns_mean_what_they_mean_to_a_broker(
    archive: Archive, names: list[str], patterns: st.DataObject
) -> None:
    archive.trim(1, 1_000_000)
    archive.add([entry(n, id=f"{name} {n}", name=name, at=0) for n, name in enumerate(names)])
    wanted = patterns.draw(st.lists(PATTERNS, min_size=1, max_size=2))

    found = {each.name for each in read(archive, Selection(tuple(wanted)))}

    assert found == {name for name in names if any(matches(one, name) for one in wanted)}


def test_names_and_keys_may_be_longer_than_an_index_takes(archive: Archive) -> None:
    long = "\U0001f4b0" * 1000
    archive.add([entry(1, id=long, key=long, name=long), entry(2, id=long + "2", key=long + "2")])

    assert ids(archive, Selection((long,), key=long)) == [long]
    assert archive.find(long + "2") is not None
    assert archive.add([entry(1, id=long)]) == 0


def test_a_page_has_no_more_than_was_asked_for_and_the_next_goes_on(archive: Archive) -> None:
    archive.add([entry(n) for n in range(1, 8)])
    after, upto = archive.span(EVERYTHING)

    first = archive.read(EVERYTHING, after, upto, 3)
    second = archive.read(EVERYTHING, first.upto, upto, 3)
    third = archive.read(EVERYTHING, second.upto, upto, 3)

    assert [len(page.entries) for page in (first, second, third)] == [3, 3, 1]
    assert third.upto == upto
    assert archive.read(EVERYTHING, upto, upto, 3).entries == []


def test_a_page_of_large_events_has_few_of_them(archive: Archive) -> None:
    large = b'"%s"' % (b"x" * 1024 * 1024)
    archive.add([entry(n, body=large if n != 5 else b"{}") for n in range(1, 11)])
    after, upto = archive.span(EVERYTHING)

    first = archive.read(EVERYTHING, after, upto, 100)
    second = archive.read(EVERYTHING, first.upto, upto, 100)

    assert [each.id for each in first.entries] == ["id-1", "id-2", "id-3", "id-4"]
    assert first.upto == first.entries[-1].seq
    assert [each.id for each in second.entries] == [f"id-{n}" for n in range(5, 10)]
    assert ids(archive) == [f"id-{n}" for n in range(1, 11)]


def test_what_is_rare_is_looked_for_a_stretch_at_a_time(archive: Archive) -> None:
    archive.add([entry(n) for n in range(1, 12_001)])
    archive.add([entry(12_001, name="order.paid")])
    rare = Selection(("order.*",))
    after, upto = archive.span(rare)

    first = archive.read(rare, after, upto, 10)

    assert first.entries == []
    assert after < first.upto < upto
    assert ids(archive, rare) == ["id-12001"]


def test_events_are_counted_by_name(archive: Archive) -> None:
    archive.add([entry(n) for n in range(1, 5)])
    archive.add([entry(5, name="order.paid"), entry(6, name="user.created")])

    found = count_all(archive, Selection(("user.*",)), *archive.span(EVERYTHING))

    assert found == {
        "user.created": Tally(1, 6_000_000, 6_000_000),
        "user.deposited": Tally(4, 1_000_000, 4_000_000),
    }


def test_it_tells_its_size(archive: Archive) -> None:
    archive.add([entry(n) for n in range(1, 4)])

    size = archive.size()

    assert (size.events, size.first, size.last) == (3, 2_000_000, 6_000_000)
    assert size.bytes > 0


def test_what_is_old_is_removed_from_its_oldest_on(archive: Archive) -> None:
    archive.add([entry(n) for n in range(1, 8)])

    assert archive.trim(8_000_000, 2) == 2
    assert archive.trim(8_000_000, 100) == 1
    assert archive.trim(8_000_000, 100) == 0

    assert ids(archive) == [f"id-{n}" for n in range(4, 8)]


def test_what_is_old_is_removed_behind_what_a_clock_that_was_ahead_has_archived(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "_TIMED", 8)
    next_century = 5_000_000_000_000_000
    archive.add([entry(n, at=next_century + n) for n in range(100, 140)])
    archive.add([entry(n) for n in range(1, 8)])

    assert archive.trim(8_000_000, 2) == 2
    assert removals_of(archive).upto == read(archive)[40].seq - 1
    assert archive.trim(8_000_000, 2) == 1
    assert archive.trim(8_000_000, 2) == 0

    assert len(ids(archive)) == 44
    assert ids(archive)[40:] == [f"id-{n}" for n in range(4, 8)]
    assert archive.trim(next_century + 110, 1000) == 14
    assert len(ids(archive)) == 30


def test_no_more_is_looked_at_than_that_there_is_something_younger(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(archive, queries.Queries)
    archive.add([entry(n) for n in range(1, 100)])
    asked: list[str] = []
    ask = archive.ask

    def counted(sql: str, parameters: Any) -> Any:
        asked.append(sql)
        return ask(sql, parameters)

    monkeypatch.setattr(archive, "ask", counted)

    assert archive.trim(1_000_000, 2) == 0

    assert len(asked) == 1


def test_it_is_known_up_to_which_place_something_was_removed(archive: Archive) -> None:
    archive.add([entry(n) for n in range(1, 8)])
    places = [each.seq for each in read(archive)]
    assert removals_of(archive).upto == 0

    archive.trim(2_000_000, 100)
    assert removals_of(archive).upto == 0, "nothing is that old"
    archive.trim(8_000_000, 2)
    assert removals_of(archive).upto == places[1]
    archive.trim(8_000_000, 100)
    archive.trim(8_000_000, 100)
    assert removals_of(archive).upto == places[2]


def test_what_is_removed_below_what_was_removed_before_is_known_too(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "_TIMED", 8)
    next_century = 5_000_000_000_000_000
    archive.add([entry(n, at=next_century + n) for n in range(100, 103)])
    archive.add([entry(n) for n in range(1, 8)])
    places = [each.seq for each in read(archive)]
    archive.trim(10_000_000, 100)
    begun = removals_of(archive)
    assert (begun.upto, begun.since(0, 0, places[-1])) == (places[6], places[6])

    def since() -> int:
        return removals_of(archive).since(begun.upto, begun.number, places[-1])

    assert since() == 0
    archive.trim(next_century + 101, 1)
    assert since() == places[0]
    archive.trim(next_century + 102, 1)
    assert since() == places[1]
    assert removals_of(archive).upto == begun.upto
    archive.trim(2**62, 100)
    assert since() == places[-1]


def test_places_are_not_given_away_again(archive: Archive) -> None:
    archive.add([entry(1), entry(2)])
    _, last = archive.span(EVERYTHING)
    archive.trim(10**12, 100)

    archive.add([entry(3)])

    assert read(archive)[0].seq > last


def test_a_document_is_changed_by_whoever_knows_its_version(archive: Archive) -> None:
    assert archive.write("replay/a", 0, "one")
    assert not archive.write("replay/a", 0, "two")
    assert archive.write("replay/a", 1, "two")
    assert not archive.write("replay/a", 1, "three")
    assert archive.write("other", 0, "x")

    assert archive.documents("replay/") == {"replay/a": (2, "two")}
    assert not archive.write("replay/a", 1, "")
    assert archive.write("replay/a", 2, "")
    assert archive.documents("") == {"other": (1, "x")}


def test_a_reader_who_saw_a_place_has_seen_all_before_it(url: str) -> None:
    """Writers side by side: what a later read finds is behind what an earlier one found."""
    writers, each, done = 4, 60, threading.Event()

    def write(writer: int) -> None:
        with closing(open_archive(url)) as own:
            for number in range(each):
                own.add([entry(writer * 1000 + number)])

    threads = [threading.Thread(target=write, args=(n,)) for n in range(writers)]
    seen: list[Entry] = []
    after = 0
    with closing(open_archive(url)) as archive:
        for thread in threads:
            thread.start()
        while not done.is_set():
            if not any(thread.is_alive() for thread in threads):
                done.set()  # one look more
            page = archive.read(EVERYTHING, after, 10**9, 10**6)
            seen += page.entries
            after = page.entries[-1].seq if page.entries else after
        total = archive.size().events

    assert len(seen) == total == writers * each
    assert len({found.id for found in seen}) == total
