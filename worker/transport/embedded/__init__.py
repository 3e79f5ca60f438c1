"""The embedded broker: an AMQP broker without a server, whose state is one SQLite database.

::

    connection, channel, declaring   what kombu sees
    broker                           one connection's view of the broker, put together
    dead_letters                     expiry, rejection, full queues
    presence, process                who is connected, who consumes, who of them is alive
    store                            the rows of messages
    declarations, catalog            exchanges, queues, bindings: changing them, routing by them
    database, schema, encoding       transactions, errors and files; the tables; bytes

Each line uses only those below it. ``worker.transport.sqlite`` opens it on a file that many
processes share, ``worker.transport.memory`` inside one process.

A delivery: ``Connection`` sees that the database changed, asks ``Broker`` which of its consumers
there is something for, has it leased to them in one transaction, and calls them back. The ack
removes the row if it is still leased to the same consumer.
"""
