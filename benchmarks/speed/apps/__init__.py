"""The apps: one file for each contender, as its users write it; ``work`` is what all handlers do.

Each has ``publish_all(stream)``, which puts a whole stream on its way by the contender's own
publisher, in its own format, and returns when everything has left.
"""
