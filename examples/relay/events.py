"""What the web servers tell of. A library that they share with whoever listens."""

from worker import Event


class PageViewed(Event, name="page.viewed", key="session"):
    #: Made by the browser: the same when it sends the view again.
    view: str
    session: str
    page: str
