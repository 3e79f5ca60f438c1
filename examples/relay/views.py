"""The relay: raw views in, views of users out. qworker start --app examples.relay.views"""

from typing import Any

from examples.relay.events import PageViewed
from worker import App, chain, deduplicate, enrich, shard

#: Who is logged in where. Elsewhere this would be a query; it may be a coroutine.
SESSIONS = {"s1": "alice", "s2": "bob", "s3": "carol", "s4": "dave"}
ROBOTS = ("/robots.txt", "/health")

app = App("views")


def without_robots(view: PageViewed) -> PageViewed | None:
    return None if view.page in ROBOTS else view


def user_of(view: PageViewed) -> dict[str, Any]:
    return {"user": SESSIONS[view.session]}


app.relay(PageViewed, to="user.{name}", name="views")(
    chain(deduplicate(by="view"), without_robots, enrich(user_of), shard(by="user"))
)
