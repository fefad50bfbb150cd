"""Volumes in memory, for tests and benchmarks of what stands above a pool."""
