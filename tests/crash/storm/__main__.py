"""Many kills of the daemon, or those of one seed.

python -m tests.crash.storm --kills 1000              # what `make soak-kills` runs
python -m tests.crash.storm --seed 17 --runs 1        # the storm of one seed again
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from tests.crash.storm.storm import Counts, play_apart

KILLS_OF_A_RUN = 20


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.storm")
    parser.add_argument("--seed", type=int, default=None, help="the first seed (default: the time)")
    parser.add_argument("--runs", type=int, default=None, help="storms, one for each seed")
    parser.add_argument("--kills", type=int, default=1000, help="at least so many kills")
    given = parser.parse_args()
    first = int(time.time()) if given.seed is None else given.seed
    runs = given.runs or -(-given.kills // KILLS_OF_A_RUN)
    work = Path(tempfile.mkdtemp(prefix="storm-"))
    total, began = Counts(), time.monotonic()
    for seed in range(first, first + runs):
        print(f"seed {seed}: {total}", flush=True)
        total = total.plus(play_apart(work, seed, KILLS_OF_A_RUN))
    work.rmdir()
    seconds = time.monotonic() - began
    print(f"seeds {first} to {first + runs - 1}: {total}; no failure; {seconds:.0f} s")


if __name__ == "__main__":
    main()
