"""SQLAlchemy (2.x): the handler's transaction holds its effect, the memory of its id, its events.

Needs the extra ``sqlalchemy``. The tests run it on PostgreSQL (psycopg 3), SQLite (sqlite3,
aiosqlite) and MariaDB (PyMySQL, asyncmy).

======================  ===========================================================================
``Inbox(sessions)``     ``with inbox.transaction(context) as session:``; ``AsyncInbox`` for asyncio
``Outbox(app, engine)``  ``outbox.publish_on_commit(session, event)``
``metadata``            the tables, for Alembic: ``target_metadata = [Base.metadata, metadata]``
``create_tables(bind)``  makes those that are not there
======================  ===========================================================================
"""

from worker.contrib.sqlalchemy.inbox import AsyncInbox, Inbox
from worker.contrib.sqlalchemy.outbox import Outbox
from worker.contrib.sqlalchemy.rows import OutboxRows
from worker.contrib.sqlalchemy.tables import create_tables, metadata

__all__ = ["AsyncInbox", "Inbox", "Outbox", "OutboxRows", "create_tables", "metadata"]
