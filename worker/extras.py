"""How an extra of qworker is installed, for the errors of whoever lacks it."""

#: Which extra brings what the integrations import.
_EXTRA_OF = {
    "sqlalchemy": "sqlalchemy",
    "greenlet": "sqlalchemy",
    "django": "django",
    "asgiref": "django",
    "psycopg": "postgres",
    "opentelemetry": "otel",
}


def hint(module: str | None) -> str:
    """Return what to add to the text of an error where ``module`` is missing; it may be nothing."""
    extra = _EXTRA_OF.get((module or "").partition(".")[0])
    return "" if extra is None else f"; the extra {extra!r} brings it: {how_to_install(extra)}"


def how_to_install(extra: str) -> str:
    """Return what to do. No index has the distribution yet, so it is installed from its sources."""
    return f"pip install '.[{extra}]' at the top of qworker's clone"
