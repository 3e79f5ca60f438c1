"""One file a command, as Django looks for them."""
