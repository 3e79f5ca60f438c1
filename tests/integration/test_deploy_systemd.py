"""The unit that we ship is what systemd understands, and fits what the supervisor does."""

from __future__ import annotations

import os
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from worker.config import Settings

UNIT = Path(__file__).parents[2] / "deploy/systemd/qworker@.service"


def service() -> dict[str, str]:
    """Return the settings of the section ``Service``, the last of each name."""
    parser = ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # as its manual has it
    parser.read_string(UNIT.read_text())
    return dict(parser["Service"])


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a command that exists on this machine."""
    text = UNIT.read_text().replace("/opt/qworker/bin/qworker", sys.executable)
    copy = tmp_path / UNIT.name
    copy.write_text(text)
    return copy


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments],
        env={**os.environ, "SYSTEMD_PAGER": "", "SYSTEMD_LOG_LEVEL": "warning"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_systemd_understands_the_unit(unit: Path) -> None:
    result = analyze("verify", "--man=no", str(unit))

    about_ours = [line for line in result.stderr.splitlines() if unit.name in line]
    assert (result.returncode, about_ours) == (0, [])


def test_the_unit_exposes_little(unit: Path) -> None:
    result = analyze("security", "--offline=yes", "--threshold=25", str(unit))

    assert result.returncode == 0, result.stdout


def test_systemd_waits_longer_than_the_drain_and_the_watchdog() -> None:
    assert float(service()["TimeoutStopSec"]) > Settings().drain_timeout + 5
    assert float(service()["WatchdogSec"]) > Settings().watchdog + 5


def test_the_supervisor_alone_gets_the_signal_and_speaks_to_systemd() -> None:
    facts = service()

    assert facts["Type"] == "notify"
    assert facts["NotifyAccess"] == "main"
    assert facts["KillMode"] == "mixed"
    assert facts["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert facts["OOMPolicy"] == "continue"


def test_mistakes_that_do_not_mend_themselves_are_not_tried_again() -> None:
    assert service()["Restart"] == "on-failure"
    assert service()["RestartPreventExitStatus"].split() == ["2", "3"]
