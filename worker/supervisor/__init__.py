"""One slim process that starts, watches, drains and replaces the processes that consume.

``supervisor`` is the loop, ``fleet`` its processes, ``policy`` what is decided without I/O.
``bootstrap``, ``child`` and ``service`` are the other end of the pipe (``control``): the child
process, which alone imports the user's app. ``reporter`` tells others how it goes: by a ``status``
file, HTTP ``probes``, ``metrics``, and to ``systemd``.
"""
