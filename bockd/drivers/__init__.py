"""The kinds of pools. None imports another."""
