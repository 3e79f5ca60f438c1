"""Every event, kept: the service that stores them, and what is read, and sent again, from there.

::

    service   the app that observes everything; writer makes one transaction of what comes at a time
    entry     one archived event, and the message that it is sent as again
    base      the protocol of a store; sqlite, postgres: the stores, with queries in common
    lines     JSON lines, out and in
"""
