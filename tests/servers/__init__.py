"""Real servers for tests and benchmarks: private ones, on free ports, with folders of their own.

Outside pytest::

    with Guard() as guard, PostgreSQL(folder, guard) as postgres:
        ...
"""

from servers.guard import Guard
from servers.postgres import PostgreSQL
from servers.process import MissingServer, Server, ServerFailed
from servers.rabbitmq import RabbitMQ
from servers.redis import ClusterOfOne, Redis

__all__ = [
    "ClusterOfOne",
    "Guard",
    "MissingServer",
    "PostgreSQL",
    "RabbitMQ",
    "Redis",
    "Server",
    "ServerFailed",
]
