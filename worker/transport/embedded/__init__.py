"""The embedded broker: an AMQP broker without a server, whose state is one SQLite database.

::

    connection, channel        what kombu sees
    broker                     one connection's view of the broker, put together
    store, dead_letters        messages: publish, fetch, settle; expiry and dead letters
    presence, process          who is connected and alive; leases
    declarations, catalog      exchanges, queues and bindings: changing them; routing by them
    database, schema           transactions, errors, files; the tables

Each file uses only those below it. ``worker.transport.sqlite`` opens it on a file that many
processes share, ``worker.transport.memory`` inside one process.
"""
