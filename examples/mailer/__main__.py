"""python -m examples.mailer: the story of README.md, told by running it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from urllib.request import urlopen

from examples.running import (
    free_port,
    program,
    service,
    start,
    story_folder,
    until,
    until_listening,
)

USERS = ("alice", "bob", "carol", "dave", "erin")
REQUESTS = 30


def main() -> None:
    with story_folder() as folder, ExitStack() as stack:
        mails = folder / "mails"
        mail_port, web_port = free_port(), free_port()
        mail_server = ["mail_server", str(mail_port), str(mails)]
        environ = {"MAIL_SERVER": f"http://127.0.0.1:{mail_port}/"}
        mailer = service("mailer.handlers", folder, environ, "--shards=2")
        stack.callback(mailer.end)
        start(mailer)
        stack.enter_context(running(folder, "web", str(web_port)))
        asked = []

        with running(folder, *mail_server):
            asked += ask(web_port, "first")
            until(lambda: len(sent(mails)) == len(asked), "all mails are sent")
            print(f"{len(asked)} requests: all mails are sent")
        asked += ask(web_port, "second")
        print("the mail server is away: the view answers all the same, the mailer tries again")
        killed = mailer.kill_one(Random())
        print(f"process {killed.pid} of the mailer is killed" if killed else "no process to kill")
        until(mailer.mourned, "the mailer replaces it")
        mailer.end()
        if mailer.exit_code:
            raise SystemExit(f"the mailer ended with exit code {mailer.exit_code}")
        asked += ask(web_port, "third")
        print("the mailer is away too: the commands wait in its queue")

        start(mailer)
        with running(folder, *mail_server):
            until(lambda: len(sent(mails)) >= len(asked), "all mails are sent")
        check(asked, sent(mails))


def ask(port: int, word: str) -> list[tuple[str, str]]:
    """Ask the web application for new passwords; return each user and text to be mailed."""
    asked = []
    for number in range(REQUESTS):
        user, password = USERS[number % len(USERS)], f"{word}-{number}"
        with urlopen(f"http://127.0.0.1:{port}/{user}", password.encode(), timeout=30):
            asked.append((user, f"The new password you requested is {password}"))
    return asked


def sent(mails: Path) -> list[tuple[str, str]]:
    """Return user and text of every mail that the mail server took."""
    lines = mails.read_text().splitlines(keepends=True) if mails.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [(mail["to"], mail["text"]) for mail in found]


def check(asked: list[tuple[str, str]], mailed: list[tuple[str, str]]) -> None:
    expected, found = by_user(asked), by_user(mailed)
    if found != expected:
        raise SystemExit(f"expected {expected}\nfound {found}")
    print(f"{len(mailed)} mails: all the expected ones, for each user in the expected order")


def by_user(mails: list[tuple[str, str]]) -> dict[str, list[str]]:
    found = defaultdict(list)
    for user, text in mails:
        found[user].append(text)
    return found


@contextmanager
def running(folder: Path, name: str, port: str, *arguments: str) -> Iterator[None]:
    """Run ``python -m examples.mailer.NAME PORT`` while the block runs."""
    command = ("-m", f"examples.mailer.{name}", port, *arguments)
    with program(folder, name, *command, environ={}) as process:
        until_listening(process, int(port), name)
        yield


if __name__ == "__main__":
    main()
