"""A service, single-threaded, under thousands of random schedules; a seed is a replay.

What runs is the product: supervisors with their keepers, dealers and resharders, children with
their consumers, on the embedded broker and the stores in memory. Simulated is what lies between
and around them: the clock, the pipes, the pools that run handlers, starts and deaths of processes.

``world`` has the machines, ``schedule`` lets happen what a seed says, ``ledger`` and ``judge`` know
what was promised, ``mutations`` breaks the product on purpose, to see that this is noticed.
"""
