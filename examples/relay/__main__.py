"""python -m examples.relay: the story of README.md, told by running it."""

from __future__ import annotations

import os
from collections import defaultdict
from contextlib import ExitStack, closing
from random import Random

from examples.relay.events import PageViewed
from examples.relay.history import connect
from examples.relay.views import ROBOTS, SESSIONS
from examples.running import BROKER, servers, service, start, story_folder, until
from worker import App

ROUNDS, VIEWS = 3, 200
#: One view of so many is sent again, as a browser does that got no answer.
AGAIN = 4


def main() -> None:
    with story_folder() as folder, ExitStack() as stack:
        environ = {"HISTORY": str(folder / "history.db")}
        os.environ |= environ
        relay = service("relay.views", folder, environ, "--shards=2", "--processes=2")
        history = service("relay.history", folder, environ, "--shards=2")
        stack.callback(relay.end)
        stack.callback(history.end)
        start(relay, history)
        web = App("web", broker=servers(folder)[BROKER])
        stack.callback(web.close)

        expected: defaultdict[str, list[str]] = defaultdict(list)
        random = Random(1)
        for number in range(ROUNDS):
            views = browse(number)
            for view in views:
                if view.page not in ROBOTS:
                    expected[SESSIONS[view.session]].append(view.page)
            again = publish(web, views)
            print(f"{len(views)} views, {again} of them sent again under another id")
            if killed := relay.kill_one(random):
                print(f"process {killed.pid} of the relay is killed")
        pages = sum(map(len, expected.values()))
        until(lambda: sum(map(len, stored().values())) >= pages, "all views are in the history")
        until(relay.mourned, "the relay has replaced what was killed")
        for each in (relay, history):
            each.end()
        if stored() != expected:
            raise SystemExit(f"expected {dict(expected)}\nfound {stored()}")
        print(f"{pages} views in the history: each once, those of a user in order, no robots")


def browse(number: int) -> list[PageViewed]:
    sessions = list(SESSIONS)
    return [
        PageViewed(
            view=f"view-{number}-{n}",
            session=sessions[n % len(sessions)],
            page=ROBOTS[n % len(ROBOTS)] if n % 7 == 0 else f"/{number}/{n}",
        )
        for n in range(VIEWS)
    ]


def publish(web: App, views: list[PageViewed]) -> int:
    """Publish ``views``, some of them twice; return how many."""
    with web.publisher() as out:
        for n, view in enumerate(views):
            out.publish(view)
            if n % AGAIN == 0:
                out.publish(PageViewed(view=view.view, session=view.session, page=view.page))
    return len(views[::AGAIN])


def stored() -> dict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    with closing(connect()) as db:
        for user, page in db.execute("SELECT user, page FROM page ORDER BY id"):
            found[user].append(page)
    return found


if __name__ == "__main__":
    main()
