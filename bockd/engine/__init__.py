"""The volume engine: what a volume does, in steps, without an event loop."""
