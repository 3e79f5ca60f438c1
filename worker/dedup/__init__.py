"""The memory of ids: one record per (handler, id), changed by compare-and-set only."""
