"""Many power cuts, or those of one seed.

python -m tests.crash.powercut --cuts 5000            # what `make soak` runs
python -m tests.crash.powercut --seed 17 --runs 1     # one history again
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import astuple
from pathlib import Path

from tests.crash.powercut.apart import play
from tests.crash.powercut.engine import laboratory
from tests.crash.powercut.mounted import power_cut_disk
from tests.crash.powercut.scenario import CUTS_OF_A_RUN, Counts


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.powercut")
    parser.add_argument("--seed", type=int, default=None, help="the first seed (default: the time)")
    parser.add_argument("--runs", type=int, default=None, help="histories, one for each seed")
    parser.add_argument("--cuts", type=int, default=5000, help="about as many power cuts")
    given = parser.parse_args()
    first = int(time.time()) if given.seed is None else given.seed
    runs = given.runs or -(-given.cuts // CUTS_OF_A_RUN)
    total = Counts()
    with (
        tempfile.TemporaryDirectory(prefix="powercut-") as mount,
        laboratory(),
        power_cut_disk(Path(mount)) as disk,
    ):
        for seed in range(first, first + runs):
            print(f"seed {seed}", end="\r", flush=True)
            counts = play(disk, seed, CUTS_OF_A_RUN).counts
            total = Counts(*map(sum, zip(astuple(total), astuple(counts), strict=True)))
    print(f"seeds {first} to {first + runs - 1}: {total}; no failure")


if __name__ == "__main__":
    main()
