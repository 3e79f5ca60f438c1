"""A history outlives the death of its writers, whatever they were in the midst of."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from chaos.history import History, Torn, Writer

Write = Callable[[int, bytes], int]


def test_a_line_that_a_death_has_cut_short_counts_as_never_written(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    history = History(file)
    writer = Writer(file, sync=False)
    writer.note("begin", id="a")
    whole = file.read_bytes()
    for length in range(1, len(whole) - 1):
        with file.open("ab") as torn:
            torn.write(whole[:length])
        assert [entry.id for entry in history.entries()] == ["a"], "it is not whole"

        writer.note("begin", id="b")
        writer.note("end", id="b")

        assert [entry.what for entry in history.entries()] == ["begin", "begin", "end"]
        piece = whole[:length].decode().strip()
        assert history.torn == ([Torn(piece, 1)] if piece else [])
        file.write_bytes(whole)
        history = History(file)


def test_a_line_is_read_once_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    history = History(file)
    Writer(file, sync=False).note("effect", key="k", detail="a\nb")
    (line, rest) = file.read_bytes()[:-9], file.read_bytes()[-9:]
    file.write_bytes(line)
    assert history.entries() == []

    with file.open("ab") as more:
        more.write(rest)

    assert [(entry.key, entry.detail) for entry in history.entries()] == [("k", "a\nb")]


def test_what_the_kernel_takes_in_parts_is_written_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write: Write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:10]))
    history = History(tmp_path / "history.jsonl")

    Writer(history.file, sync=False).note_all({"what": "effect", "id": id_} for id_ in "abc")

    assert [entry.id for entry in history.entries()] == [*"abc"]
    assert history.torn == []


def test_who_cannot_write_to_the_end_hears_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write: Write = os.write

    def write_some(file: int, data: bytes) -> int:
        if data.startswith(b"\n"):
            return write(file, data[:10])
        raise OSError("no room")

    monkeypatch.setattr(os, "write", write_some)
    history = History(tmp_path / "history.jsonl")
    with pytest.raises(OSError, match="no room"):
        Writer(history.file, sync=False).note("effect", id="a")
    monkeypatch.undo()
    Writer(history.file, sync=False).note("end", id="a")

    assert [entry.what for entry in history.entries()] == ["end"]
    assert len(history.torn) == 1
