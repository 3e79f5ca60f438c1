"""The clock of a simulation, in the place of the module ``time``; modules with other insides."""

from __future__ import annotations

from typing import Any

#: Seconds that leases live.
TTL = 2.0
_START, _WALL = 1000.0, 1_700_000_000.0


class Clock:
    """Seconds that pass when the schedule says so. Has the names of the module ``time``."""

    CLOCK_BOOTTIME = 7

    def __init__(self) -> None:
        self.now = _START

    def reset(self) -> None:
        self.now = _START

    def monotonic(self) -> float:
        return self.now

    def clock_gettime(self, _clock: int) -> float:
        return self.now

    def time(self) -> float:
        return _WALL + self.now

    def time_ns(self) -> int:
        return int(self.time() * 1e9)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Stand:
    """Stands in the place of a module: some names are ours, the others its own."""

    def __init__(self, module: Any, **names: Any) -> None:
        self._module = module
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class Ordered(dict[Any, None]):
    """A set that is gone through in the order in which it was filled, as addresses have no say."""

    def __init__(self, items: Any = ()) -> None:
        super().__init__(dict.fromkeys(items))

    def add(self, item: Any) -> None:
        self[item] = None

    def discard(self, item: Any) -> None:
        self.pop(item, None)

    def difference_update(self, items: Any) -> None:
        for item in items:
            self.pop(item, None)

    def __sub__(self, items: Any) -> Ordered:
        return Ordered(item for item in self if item not in items)
