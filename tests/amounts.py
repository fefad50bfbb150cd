"""How many random histories, examples and kills the tests try: a fifth of what `make test-random`
tries, which keeps the gate short. Each run draws others, unless a test has fixed seeds."""

from __future__ import annotations

import os

VARIABLE = "BOCKD_TEST_AMOUNT"

TIMES = int(os.environ.get(VARIABLE, "1"))


def amount(in_the_gate: int) -> int:
    """Return how many to try, of which `in_the_gate` are enough there."""
    return in_the_gate * TIMES
