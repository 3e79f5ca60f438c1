"""python -m examples.latecomer: the story of README.md, told by running it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from random import Random

from examples.latecomer.accounts import connect
from examples.latecomer.events import PointsEarned
from examples.running import ROOT, servers, service, start, story_folder, until
from worker import App
from worker.demo.service import Service

CUSTOMERS = ("alice", "bob", "carol", "dave")
PAST = 1200
REPLAY = (
    sys.executable, "-m", "worker.cli", "replay", "--app=examples.latecomer.accounts", "--shards=2",
)  # fmt: skip
#: So that the first replay is killed long before it is done.
SLOWLY = ("--ahead=100", "--rate=150")


class Shop:
    """Publishes, and remembers what it has published."""

    def __init__(self, app: App) -> None:
        self._app = app
        self.told: defaultdict[str, list[int]] = defaultdict(list)
        self._closing = threading.Event()

    def sell(self, number: int) -> None:
        """Let the customers earn points, one after the other."""
        with self._app.publisher() as out:
            for turn in range(number):
                customer = CUSTOMERS[turn % len(CUSTOMERS)]
                event = PointsEarned(
                    customer=customer, number=len(self.told[customer]), points=turn % 7
                )
                out.publish(event)
                self.told[customer].append(event.number)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Sell all along while the block runs."""

        def work() -> None:
            while not self._closing.wait(0.1):
                self.sell(8)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            self._closing.set()
            thread.join()


def main() -> None:
    with story_folder() as folder, ExitStack() as stack:
        url = os.environ.get("QWORKER_ARCHIVE_URL") or f"sqlite:///{folder / 'archive.db'}"
        environ = {"QWORKER_ARCHIVE_URL": url, "ACCOUNTS": str(folder / "accounts.db")}
        os.environ |= {**servers(folder), **environ}
        archive = Service(
            "worker.archive.service", folder, ("--shards=2",), {**servers(folder), **environ}
        )
        accounts = service("latecomer.accounts", folder, environ, "--shards=2", "--processes=2")
        stack.callback(archive.end)
        stack.callback(accounts.end)
        web = App("shop")
        stack.callback(web.close)
        shop = Shop(web)

        start(archive)
        shop.sell(PAST)
        print(f"{PAST} events were published, and nobody but the archive observed them")
        with shop.open():
            tell(folder, accounts)
        until(lambda: sum(map(len, noted().values())) >= total(shop.told), "all is noted")
        until(accounts.mourned, "what was killed is replaced")
        for each in (accounts, archive):
            each.end()
        check(shop.told)


def tell(folder: Path, accounts: Service) -> None:
    replay = begin_replay(
        folder, "--id=accounts", "--app=examples.latecomer.accounts", "--hold-live", *SLOWLY
    )
    # A service that starts before it is held is live at once, and the past would come too late.
    log = folder / "replay.log"
    until(lambda: " sent, " in log.read_text(), "the replay holds what is live")
    start(accounts)
    until(lambda: count(is_past=True) > PAST // 8, "some of the past is handled")
    replay.kill()
    replay.wait()
    print(f"the replay is killed after {count(is_past=True)} events; the shop goes on selling")
    if killed := accounts.kill_one(Random(1)):
        print(f"so is process {killed.pid} of the accounts")
    replay = begin_replay(folder, "--resume=accounts")
    if replay.wait() != 0:
        raise SystemExit(log.read_text())
    until(lambda: count(is_past=False) > 0, "the accounts handle what is live")


def begin_replay(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    with (folder / "replay.log").open("ab") as log:
        return subprocess.Popen(  # noqa: S603 - our own program
            [*REPLAY, *options],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def noted() -> dict[str, list[int]]:
    found: defaultdict[str, list[int]] = defaultdict(list)
    with closing(connect()) as db:
        for customer, number in db.execute("SELECT customer, number FROM earned ORDER BY id"):
            found[customer].append(number)
    return found


def count(*, is_past: bool) -> int:
    with closing(connect()) as db:
        query = "SELECT count(*) FROM earned WHERE is_past = ?"
        ((number,),) = db.execute(query, (is_past,))
    return int(number)


def total(told: Mapping[str, list[int]]) -> int:
    return sum(map(len, told.values()))


def check(told: Mapping[str, list[int]]) -> None:
    if noted() != told:
        raise SystemExit(f"expected {dict(told)}\nfound {dict(noted())}")
    past, live = count(is_past=True), count(is_past=False)
    print(
        f"{past} events of the past, then {live} that were live: of each customer all, once, and in"
        " order"
    )


if __name__ == "__main__":
    main()
