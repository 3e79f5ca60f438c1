"""The mailer: a command with retries, and a mail server that goes away and comes back."""

from __future__ import annotations

from acceptance.examples import run


def test_all_expected_mails_are_sent_in_the_expected_order() -> None:
    story = run("examples.mailer")

    assert story.exit_code == 0, story.output
    assert "the mail server is away: the view answers all the same" in story.output
    assert "the mailer is away too: the commands wait in its queue" in story.output
    assert "90 mails: all the expected ones, for each user in the expected order" in story.output
