"""What dedup stores and lease stores share: a way to their server, and errors told the same way."""
