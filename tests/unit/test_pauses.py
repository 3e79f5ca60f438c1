"""The document of what is paused."""

from __future__ import annotations

import pytest

from worker.errors import StoreCorrupt
from worker.sharding.pauses import Pauses


def test_nothing_is_paused_at_first() -> None:
    assert not Pauses()
    assert str(Pauses()) == "nothing"
    assert not Pauses().covers(1, 0)


def test_without_a_name_the_whole_service_is_paused_and_everything_resumed() -> None:
    paused = Pauses().paused(1)

    assert paused.service
    assert paused.covers(1, 7)
    assert paused.covers(2, 7)
    assert str(paused.paused(1, shards=[3])) == "the whole service and shard 3"
    assert paused.paused(1, handlers=["mail"]).resumed(1) == Pauses()


def test_shards_and_handlers_are_paused_and_resumed_each_by_itself() -> None:
    paused = Pauses().paused(1, shards=[5, 3]).paused(1, handlers=["mail"])

    assert str(paused) == "shards 3, 5 and handler mail"
    assert paused.covers(1, 3)
    assert not paused.covers(1, 4)
    assert paused.resumed(1, shards=[3]) == Pauses(False, 1, (5,), ("mail",))
    assert paused.resumed(1, handlers=["mail"]) == Pauses(False, 1, (3, 5))


def test_doing_it_twice_changes_nothing() -> None:
    once = Pauses().paused(1, shards=[3], handlers=["mail"])

    assert once.paused(1, shards=[3], handlers=["mail"]) == once
    gone = once.resumed(1, shards=[3], handlers=["mail"])
    assert gone == gone.resumed(1, shards=[3], handlers=["mail"]) == Pauses()


def test_shards_are_those_of_their_generation() -> None:
    paused = Pauses().paused(1, shards=[3], handlers=["mail"])

    assert not paused.covers(2, 3)
    assert paused.of(2) == Pauses(handlers=("mail",))
    assert paused.paused(2, shards=[0]) == Pauses(False, 2, (0,), ("mail",))


def test_a_document_is_read_as_it_was_written() -> None:
    for pauses in (Pauses(), Pauses(True, 4, (0, 1), ("a", "b"))):
        assert Pauses.load(pauses.dump()) == pauses


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"service": true, "shards": 3}'])
def test_anything_else_is_no_such_document(text: str) -> None:
    with pytest.raises(StoreCorrupt, match="what is paused"):
        Pauses.load(text)
