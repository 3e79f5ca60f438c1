"""Integrations with other packages, importable as ``worker.contrib``.

They import only the public names of ``worker`` and nothing behind them; nothing in ``worker``
imports them.
"""
