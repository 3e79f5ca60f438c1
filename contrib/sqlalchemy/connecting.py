"""The connection of a session on which rows of qworker become part of its transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worker import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, Table
    from sqlalchemy.orm import Session


def connection_to(table: Table, session: Session) -> Connection:
    """Return the session's connection to where ``table`` is.

    Raises ConfigurationError as :func:`require_transactions` does.
    """
    connection = session.connection(bind_arguments={"clause": table.insert()})
    require_transactions(connection, table)
    return connection


def bind_of(table: Table, session: Session) -> Engine | Connection:
    """Return what the session gets its connection to where ``table`` is from."""
    return session.get_bind(clause=table.insert())


def require_transactions(connection: Connection, table: Table) -> None:
    """Raise ConfigurationError where ``connection`` commits each statement by itself.

    There an effect could stay without its row in ``table``, or a row without its effect.
    """
    if is_autocommit(connection) or _is_autocommit_of_driver(connection):
        raise ConfigurationError(
            f"{table.name} needs transactions, and the engine of this session commits each"
            " statement by itself (the isolation level AUTOCOMMIT, or an argument for the driver):"
            " give the session an engine that does not"
        )


def is_autocommit(connection: Connection) -> bool:
    """Tell whether SQLAlchemy was told to have each statement committed by itself."""
    return connection._is_autocommit_isolation()  # noqa: SLF001 - the public ones tell half of it


def _is_autocommit_of_driver(connection: Connection) -> bool:
    """Tell whether the driver was, past SQLAlchemy. For a connection with a transaction begun."""
    driver: Any = connection.connection.driver_connection
    if hasattr(driver, "get_autocommit"):  # PyMySQL, mysqlclient, asyncmy
        return bool(driver.get_autocommit())
    if connection.dialect.name == "sqlite" and driver.isolation_level is None:
        return not driver.in_transaction  # else a listener has begun one
    return getattr(driver, "autocommit", None) is True
