"""Which archived events are meant: by name, key and time. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from worker.routing import is_pattern, topic_words

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Selection:
    """Events of one of these names, of this key, of that time; nothing said means all."""

    #: Names and topic patterns; and those of which one has to take it as well.
    names: tuple[str, ...] = ()
    observed: tuple[str, ...] = ()
    key: str | None = None
    #: Microseconds since 1970: from the first on, and before the second.
    since: int | None = None
    until: int | None = None

    @property
    def one_name(self) -> str | None:
        """The name, where one is asked for that is no pattern."""
        one = self.names[0] if len(self.names) == 1 else ""
        return one if one and not is_pattern(one) else None

    @property
    def is_narrow(self) -> bool:
        """Whether an index leads straight to what is meant, in its order."""
        return self.key is not None or self.one_name is not None

    def dump(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return {
            "names": [*self.names],
            "observed": [*self.observed],
            "key": self.key,
            "since": self.since,
            "until": self.until,
        }

    @classmethod
    def load(cls, told: Mapping[str, Any]) -> Selection:
        """Read what ``dump`` returned. Raises KeyError and TypeError for anything else."""
        names, observed = tuple(told["names"]), tuple(told["observed"])
        return cls(names, observed, told["key"], told["since"], told["until"])


@lru_cache(maxsize=64)
def expression_of(pattern: str) -> str:
    """Return a regular expression for a dot and a name that a topic ``pattern`` takes.

    It is understood alike by Python and by PostgreSQL. The dot in front makes all words look alike:
    ``#`` takes any number of words with their dots, so it needs no cases.
    """
    return rf"\A{''.join(map(_word, topic_words(pattern)))}\Z"


def _word(word: str) -> str:
    match word:
        case "*":
            return r"\.[^.]*"
        case "#":
            return r"(\.[^.]*)*"
    return rf"\.{re.escape(word)}"  # a backslash before what is neither letter nor digit: alike
