"""``qworker demo``: a history of files, streamed through a service whose processes are killed.

::

    history    changes of files: out of git, out of a file, or made up
    handlers   the service: an event, and a handler that writes down what it does
    ledger     what the handler did
    stream     publishing at least once
    service    the real command line in a process of its own
    scenario   what to do in a trial
    trial      all of it together, killed and restarted as the scenario says
    checker    what the ledger says of the promises
    report     what came out
    view       what is seen of it
    run        the command
"""

from worker.demo.run import run_demo

__all__ = ["run_demo"]
