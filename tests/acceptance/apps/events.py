"""What the tests publish and the apps under test handle."""

from worker import Event


class Step(Event, name="test.step", key="key"):
    """The ``sequence``-th event of its key. ``fault`` tells a handler to go wrong."""

    key: str
    sequence: int
    fault: str = ""
    #: How long the handler takes.
    seconds: float = 0.0
