"""Limits of I/O as they are enforced: buckets of tokens, and who waits for them."""
