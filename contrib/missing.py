"""Whether an error of a database says that a table is not there, which each driver does its way."""

from __future__ import annotations

#: PostgreSQL's and MySQL's (their manuals, "PostgreSQL Error Codes" and "Server Error Message
#: Reference"); not every driver of MySQL tells the state, but its number comes first in all.
_STATES = ("42P01", "42S02")
_NUMBER = 1146
_OF_SQLITE = "no such table"


def is_missing_table(error: BaseException | None) -> bool:
    """Tell it by the driver's own error."""
    if error is None:
        return False
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    return state in _STATES or error.args[:1] == (_NUMBER,) or str(error).startswith(_OF_SQLITE)
