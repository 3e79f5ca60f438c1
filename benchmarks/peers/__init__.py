"""The same load and the same faults for qworker and for others that run handlers on RabbitMQ.

::

    apps/        each worker's own app, as its users write it; ``booking`` is what all handlers do
    contenders   how each is started, and with which settings
    publisher    processes that publish at a steady rate, each message confirmed
    unit         a worker as systemd runs it: started again when it ends
    nemesis      the faults, out of a seed, and how they are done
    site         the servers, and one contender at work on them
    history      what publishers and handlers note in a file
    judge        what that says: lost, repeated, reordered, overlapped
    report       the table
"""
