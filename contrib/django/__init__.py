"""Django (4.2 to 6): the handler's transaction holds its effect, the memory of its id, its events.

Needs the extra ``django``, and ``"worker.contrib.django"`` in ``INSTALLED_APPS``. The tests run it
on PostgreSQL (psycopg 3), SQLite and MariaDB (PyMySQL).

======================  ===========================================================================
``Inbox()``             ``with inbox.transaction(context):`` is ``transaction.atomic`` with the id
``Outbox(app)``         ``outbox.publish_on_commit(event)``, within any ``transaction.atomic``
``fresh_connections``   a middleware: no handler meets a connection that the database has closed
``OutboxRows``          the rows as a relay reads them
``service``             what ``--app`` names for a project: Django is set up first
======================  ===========================================================================

``manage.py qworker`` is the command line of qworker for the project: ``manage.py qworker start``
runs the service that ``settings.QWORKER_APP`` names, ``manage.py qworker outbox`` its relay.
``manage.py qworker_purge`` forgets old ids.

The tables are those of ``worker.contrib.sqlalchemy``, and both may use the same ones. ``migrate``
makes ``qworker_inbox`` with one column more, since a model needs a key of one column before Django
5.2; nothing but a look by the model asks for it.
"""

from worker.contrib.django.connecting import fresh_connections
from worker.contrib.django.inbox import Inbox
from worker.contrib.django.outbox import Outbox
from worker.contrib.django.rows import OutboxRows

__all__ = ["Inbox", "Outbox", "OutboxRows", "fresh_connections"]
