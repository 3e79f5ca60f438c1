"""The fault harness: what is promised, thrown at the real thing with faults, and judged.

``history`` is what everybody noted outside the system, ``executions`` what handlers did by it, and
``checker`` the judge; ``excuses``, ``deserts``, ``acknowledging``, ``recording`` and ``deaths`` are
the limits within which it lets something be. ``nemesis`` makes the faults, by a schedule that
follows from a seed; ``crashpoints`` kill a process between two lines of the runtime, and ``clerk``
notes what a process heard to be recorded. ``workloads`` are what is published and how its end is
looked at, and ``trial`` puts all of that together.
"""
