"""A history outlives the death of its writers, whatever they were in the midst of."""

from __future__ import annotations

from pathlib import Path

from chaos.history import History, Writer


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
