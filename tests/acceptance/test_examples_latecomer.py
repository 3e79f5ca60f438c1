"""The latecomer of the examples: the past and what is live, through kills, without a seam."""

from __future__ import annotations

from acceptance.examples import run


def test_the_latecomer_has_everything_once_and_in_order() -> None:
    story = run("examples.latecomer")

    assert story.exit_code == 0, story.output
    assert "the replay is killed after" in story.output
    assert "of the accounts" in story.output
    assert "of each customer all, once, and in order" in story.output
