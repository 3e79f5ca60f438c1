"""The relay of the examples: killed on the way, and the history downstream is right."""

from __future__ import annotations

from acceptance.examples import run


def test_the_history_has_each_view_once_and_in_order() -> None:
    story = run("examples.relay")

    assert story.exit_code == 0, story.output
    assert "of the relay is killed" in story.output
    assert "views in the history: each once, those of a user in order, no robots" in story.output
