"""How an extra of qworker is installed, for the errors of whoever lacks it."""


def how_to_install(extra: str) -> str:
    """Return what to do. No index has the distribution yet, so it is installed from its sources."""
    return f"pip install '.[{extra}]' at the top of qworker's clone"
