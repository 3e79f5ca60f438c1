"""Which shard has a key, who has a shard, and the order of each key.

Decisions out of data, without a broker, a store or a clock: ``slots`` and ``ring`` spread keys over
shards, ``assignment`` and ``ownership`` shards over members; ``generations`` and ``pauses`` are the
documents that all members go by; ``lanes`` keep each key's order in a process.
"""
