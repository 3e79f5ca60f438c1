"""Where handlers run: threads for plain functions, one event loop for coroutine functions."""
