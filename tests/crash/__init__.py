"""Tests in which the daemon dies while clients use it."""
