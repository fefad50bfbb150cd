"""Tests of the REST frontend, over real sockets and an in-memory `Control`."""
