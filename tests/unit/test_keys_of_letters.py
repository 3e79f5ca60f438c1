"""A dead letter tells its key also to whoever has no app to find it with."""

from __future__ import annotations

import pytest

from worker import App, Event
from worker.codec import Codec
from worker.deadletters import Box, Letter
from worker.testing import TestWorker
from worker.topology import dead_letter_queue


class Placed(Event, name="placed", key="customer"):
    """What a foreign publisher tells of."""

    customer: str


@pytest.mark.parametrize("key", [None, "c1"], ids=["in the payload", "in its header"])
def test_a_key_that_the_handlers_class_found_is_kept(key: str | None) -> None:
    app = App("shop")

    @app.on(Placed)
    def fail(_: Placed) -> None:
        raise ValueError("no")

    with TestWorker(app) as worker:
        worker.publish_raw(b'{"customer": "c1"}', name="placed", id="m1", key=key)
        worker.run()
        codec = Codec.of("shop", worker.settings)
        with Box(dead_letter_queue("shop"), codec, worker.settings) as box:
            (letter,) = box.read()
            assert letter.key == "c1"
            assert ("qw-dead-key" in letter.headers) is (key is None)
            returned = letter.back("", "somewhere", {})

    assert isinstance(letter, Letter)
    assert "qw-dead-key" not in returned.headers
    assert b"qw-dead-key" not in (returned.raw or b"")
