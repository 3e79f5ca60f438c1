"""Brokers: what they can do, connections to them, and brokers of our own."""
