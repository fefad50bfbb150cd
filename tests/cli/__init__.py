"""Tests of the command lines, run as programs against a daemon on real sockets."""
