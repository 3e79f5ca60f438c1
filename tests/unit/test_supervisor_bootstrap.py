"""The first lines of a child: they find this package, or say what stands in the way."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

from worker.supervisor.process import CHILD_COMMAND

ROOT = Path(__file__).parents[2]


def boot(folder: Path, python_path: str) -> tuple[int, dict[str, object]]:
    """Start a child in ``folder``; return its exit code and its first words to the supervisor."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = subprocess.Popen(
            [*CHILD_COMMAND, str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            cwd=folder,
            env={**os.environ, "PYTHONPATH": python_path},
        )
        theirs.close()
        ours.sendall(json.dumps({"kind": "boot", "options": {}, "index": 0}).encode() + b"\n")
        with ours.makefile() as lines:
            said = json.loads(lines.readline())
        return child.wait(30), said


def test_a_module_of_the_users_named_worker_is_told_in_plain_words(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text("app = 1\n")

    code, said = boot(tmp_path, str(tmp_path))

    assert code == 3
    assert said["kind"] == "fatal"
    assert said["exit_code"] == 3
    assert f"`import worker` finds {tmp_path / 'worker.py'} instead of" in str(said["text"])


def test_the_current_folder_cannot_hide_the_package(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text("raise SystemExit('wrong module')\n")

    code, said = boot(tmp_path, str(ROOT))

    assert "which app?" in str(said["text"])
    assert code == 3


def test_the_package_is_found_though_no_path_leads_to_it(tmp_path: Path) -> None:
    code, said = boot(tmp_path, "")

    assert "which app?" in str(said["text"])
    assert code == 3
