"""A consistent-hash ring: which member has a key. Pure; knows neither a broker nor a store.

Every member owns virtual points on a ring of 64-bit numbers; a key belongs to the owner of the
first point at or after the key's own number. Adding or removing one of n members moves about
1/n of the keys and no others (Karger et al., "Consistent Hashing and Random Trees", 1997).

Points and keys are numbered by BLAKE2b, so a mapping is the same in every process, on every
machine and in every version of Python. It is on disk too, in which queue a key's messages are
waiting: changing anything here moves keys, and ``tests/unit/test_ring.py`` pins it.
"""

from __future__ import annotations

from bisect import bisect_left
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: Points of a member of the smallest weight. The loads of equal members differ by about
#: 1/sqrt(points), so by 6 %; twice the points would take a build twice as long for 4 %.
_POINTS = 256
#: One digest of 64 bytes is cut into points of 8.
_POINT_BYTES = 8
_DIGEST_BYTES = 64
#: Bound on the points of one member, so that weights of 1 and 1,000,000 do not fill the memory.
_MOST_POINTS = 65_536


class Ring:
    """A ring of ``members``: name to weight. Immutable, so threads may share it.

    Weights are positive and count in proportion to each other: ``{"a": 10, "b": 20}`` is
    ``{"a": 1, "b": 2}``. Raises ValueError where there is no member or a weight is below 1.
    """

    __slots__ = ("_owners", "_points", "members")

    def __init__(self, members: Mapping[str, int]) -> None:
        if not members:
            raise ValueError("a ring needs at least one member")
        smallest = min(members.values())
        if smallest < 1:
            raise ValueError(f"the weight of a ring's member is at least 1, not {smallest}")
        self.members = dict(members)
        ring = sorted(
            (point, name)
            for name, weight in members.items()
            for point in _points_of(name, min(_MOST_POINTS, _POINTS * weight // smallest))
        )
        self._points = [point for point, _ in ring]
        self._owners = [name for _, name in ring]

    def lookup(self, key: bytes | str) -> str:
        """Return the member that ``key`` belongs to. Text counts as its UTF-8."""
        return self._owners[self._first_point(key)]

    def preferences(self, key: bytes | str) -> Iterator[str]:
        """Yield every member once, in the order in which they come after ``key`` on the ring.

        The first is the one that ``lookup`` returns; the next ones are where a key goes that finds
        no room before.
        """
        first, met = self._first_point(key), set[str]()
        for index in range(first, first + len(self._owners)):
            name = self._owners[index % len(self._owners)]
            if name not in met:
                met.add(name)
                yield name
            if len(met) == len(self.members):
                return

    def _first_point(self, key: bytes | str) -> int:
        data = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
        number = int.from_bytes(blake2b(data, digest_size=_POINT_BYTES).digest(), "big")
        index = bisect_left(self._points, number)
        return index if index < len(self._points) else 0


def _points_of(name: str, count: int) -> Iterator[int]:
    """Yield the first ``count`` points of a member; more weight adds points and keeps these."""
    per_digest = _DIGEST_BYTES // _POINT_BYTES
    seed = blake2b(name.encode("utf-8", "surrogatepass") + b"\0", digest_size=_DIGEST_BYTES)
    for number in range(-(-count // per_digest)):
        hasher = seed.copy()
        hasher.update(number.to_bytes(4, "big"))
        digest = hasher.digest()
        for index in range(min(per_digest, count - number * per_digest)):
            start = index * _POINT_BYTES
            yield int.from_bytes(digest[start : start + _POINT_BYTES], "big")
