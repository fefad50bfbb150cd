"""Tests of the whole daemon: what it refuses, how it stops, and what it does when things break."""
