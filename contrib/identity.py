"""Ids and keys as every database keeps, compares and indexes them."""

from __future__ import annotations

import re
from hashlib import blake2b

#: Characters that ``plain`` returns at most.
LENGTH = 255
_PLAIN = re.compile(r"[!-~]{1,200}")


def plain(text: str) -> str:
    """Return ``text``; a hash of it where databases would refuse it, or take it for another.

    Ids of other publishers may be long, or hold what a database refuses (NUL), folds (case) or pads
    (spaces at the end). What is returned is visible ASCII.
    """
    if _PLAIN.fullmatch(text):
        return text
    return f"blake2b:{blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=32).hexdigest()}"
