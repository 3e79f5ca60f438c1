"""The services of the harness: handlers that only leave, outside the system, what they did."""
