"""One slim process that starts, watches, drains and replaces the processes that consume.

``supervisor`` is the loop and ``fleet`` what it knows of its children; ``policy`` decides, without
I/O. ``bootstrap``, ``child`` and ``service`` are the other end of the pipe (``control``): the child
process, which alone imports the user's app. ``status``, ``probes``, ``metrics`` and ``systemd`` tell
others how it goes.
"""
