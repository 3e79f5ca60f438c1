"""Order: the ring that spreads keys, and the lanes that keep each key's order."""
