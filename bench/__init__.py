"""Measures bockd: against other NBD servers, side by side, and against itself."""
