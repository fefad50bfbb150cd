"""Tests of the benchmark, and of what it can hold to exactly."""
