"""The same failing handler in three services, one for each policy of exhausted retries.

The events with a fault fail until the file ``mended`` is there.
"""

from pathlib import Path

from acceptance.apps.events import Step
from acceptance.apps.ledger import note
from worker import App, Context, RetryPolicy


def handle(event: Step, context: Context) -> None:
    """Fail for ever."""
    note("begin", event, context)
    if event.fault and not Path("mended").exists():
        raise LookupError(f"no account {event.key}")
    note("effect", event, context)


def service(policy: str) -> App:
    """Return a service whose handler gives up after three attempts."""
    app = App(f"failing-{policy}")
    retry = RetryPolicy(attempts=3, wait="fixed", first_wait=0.05, exhausted=policy)  # type: ignore[arg-type] # from the environment
    app.on(Step, retry=retry)(handle)
    return app


dead_letter, park_key, halt_shard = map(service, ("dead_letter", "park_key", "halt_shard"))
