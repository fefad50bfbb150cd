"""Tests of the REST door, over real sockets and an in-memory `Control`."""
