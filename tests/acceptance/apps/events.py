"""What the tests publish and the apps under test handle."""

from pathlib import Path

from worker import Event

#: The fault of an event that lasts until the file ``RELEASED`` is in the service's folder.
HELD = "held"
RELEASED = "released"


class Step(Event, name="test.step", key="key"):
    """The ``sequence``-th event of its key. ``fault`` tells a handler to go wrong.

    What a test has to find running is ``HELD``: any length of time would be a bet on the machine.
    """

    key: str
    sequence: int
    fault: str = ""
    #: How long the handler takes.
    seconds: float = 0.0

    @property
    def is_held(self) -> bool:
        """Whether its handler has to wait on."""
        return self.fault == HELD and not Path(RELEASED).exists()
