"""What is taken out of a queue of dead letters stays out of it, however much it is."""

from __future__ import annotations

from pathlib import Path

import amqp
import pytest

from waiting import until
from worker.cli.letters import Filter
from worker.cli.reading import Search
from worker.codec import Codec
from worker.config import Settings, load_settings
from worker.deadletters import Box
from worker.transport.capabilities import connect
from worker.transport.inbound import release

QUEUE = "bank.dlq"


@pytest.fixture(params=["quorum", "classic", "embedded"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """A broker with a queue of 500 letters."""
    if request.param == "embedded":
        url = f"sqlite:///{tmp_path / 'broker.db'}"
    else:
        url = request.getfixturevalue("amqp_url")
    made = load_settings({"broker": url}, {}, tmp_path)
    connection = connect(url, heartbeat=0, timeout=5, name="test")
    arguments = {} if request.param == "embedded" else {"x-queue-type": request.param}
    channel = connection.channel()
    channel.queue_declare(QUEUE, durable=True, auto_delete=False, arguments=arguments)
    for number in range(500):
        channel.basic_publish(
            amqp.Message(b"{}", message_id=str(number), type="x", delivery_mode=2), "", QUEUE
        )
    until(lambda: channel.queue_declare(QUEUE, passive=True).message_count == 500)
    release(connection)
    return made


@pytest.mark.parametrize("wanted", [range(500), range(1, 500), range(0, 500, 2)])
def test_what_was_removed_is_gone(settings: Settings, wanted: range) -> None:
    codec = Codec.of("bank", settings)
    with Box(QUEUE, codec, settings) as box:
        letters = list(box.read())
        assert len(letters) == 500
        for start in range(0, 500, 200):
            box.remove([x for x in letters[start : start + 200] if int(x.id) in wanted])

    def is_left() -> bool:
        with Box(QUEUE, codec, settings) as box:
            return not box.readers

    until(is_left)  # by then what was not removed is back
    with Box(QUEUE, codec, settings) as box:
        assert [int(letter.id) for letter in box.read()] == sorted({*range(500)} - {*wanted})


def test_who_looks_while_another_reads_is_told(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    codec = Codec.of("bank", settings)
    with Box(QUEUE, codec, settings) as first:
        assert len(list(first.read())) == 500
        with Box(QUEUE, codec, settings) as second:
            search = Search(second, Filter())
            assert list(search) == []
            search.tell(0)
    told = capsys.readouterr().err
    assert "somebody else is reading bank.dlq" in told
    assert "empty" not in told
