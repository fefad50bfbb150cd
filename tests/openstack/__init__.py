"""Real clients and the specification itself against the public API, over the real service."""
