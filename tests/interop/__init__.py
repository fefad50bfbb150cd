"""Tests in which other people's NBD clients use a running daemon."""
