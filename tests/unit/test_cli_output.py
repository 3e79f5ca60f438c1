"""Tables on a terminal: an id is copied from one command into the next."""

from __future__ import annotations

import pytest

from worker.cli import output

ID = "019a4e3c-7b1d-7c52-9d0e-5f6a7b8c9d0e"
COLUMNS = ("id", "event", "handler", "reason")
ROW = (ID, "user.deposited", "pay_out_what_is_left", "ValueError: the account has been closed")


@pytest.fixture
def table(
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """What a terminal of so many columns shows."""
    monkeypatch.setenv("COLUMNS", str(request.param))
    monkeypatch.setattr(output, "is_terminal", lambda: True)
    output.emit_table(COLUMNS, [ROW])
    return capsys.readouterr().out


@pytest.mark.parametrize("table", [72, 80, 200], indirect=True)
def test_an_id_is_in_one_line(table: str) -> None:
    assert ID in table


@pytest.mark.parametrize("table", [40, 71], indirect=True)
def test_where_there_is_no_room_it_is_folded_and_nothing_is_cut(table: str) -> None:
    """Each of its characters is in the lines of its column."""
    assert ID not in table
    width = table.splitlines()[0].index("event")
    found = "".join(line[:width].strip() for line in table.splitlines()[1:])
    assert found == ID
