"""Every event, kept: the service that stores them, and what is read, and sent again, from there.

::

    service   the app that observes everything; writer makes one transaction of what comes at a time
    entry     one archived event, and the message that it is sent as again; tables: its headers
    base      the protocol of a store; sqlite, postgres: the stores, with queries in common
    removals  what was removed, for replays that have not sent it yet
    selection which events are meant; walk: through all of them, in pages
    lines     JSON lines, out and in; wire: what AMQP can carry of an event
    replayer  carries out a replay: sender sends, journal keeps how far it is
    seam      where the past meets what is live; horizon: up to which place the past goes
"""
