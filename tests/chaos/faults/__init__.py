"""Faults on servers, links, disks and clocks. Each is a context manager that heals when it ends.

``outages`` end and hang any server; ``rabbitmq`` and ``redis`` are what befalls these alone.
``proxy`` is a link that can be slowed, cut and reset, ``disk`` one that fills up, and ``clock`` a
wall clock that jumps. ``catalog`` has all of them by name, with what each may excuse.
"""
