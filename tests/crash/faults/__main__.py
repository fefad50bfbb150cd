"""Faults at every position, at some of each kind, or one again.

python -m tests.crash.faults                              # what `make faults` runs
python -m tests.crash.faults --seed 7 --each 3            # three positions of each kind
python -m tests.crash.faults --at 167 --how EIO_LASTING   # one fault again
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tests.crash.faults.apart import FaultNotMasteredError
from tests.crash.faults.engine import faulty_laboratory
from tests.crash.faults.mounted import Fault, How, faulty_disk
from tests.crash.faults.sweep import Positions


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.faults")
    parser.add_argument("--seed", type=int, default=1, help="chooses the positions of --each")
    parser.add_argument("--each", type=int, help="so many positions of each kind")
    parser.add_argument("--at", type=int, help="this position")
    parser.add_argument("--how", choices=[how.name for how in How], help="this fault")
    given = parser.parse_args()
    failures = 0
    counts: Counter[str] = Counter()
    with (
        tempfile.TemporaryDirectory(prefix="faults-") as mount,
        faulty_laboratory(),
        faulty_disk(Path(mount)) as disk,
    ):
        positions = Positions(disk)
        faults: Iterable[Fault] = positions.everywhere()
        if given.at:
            faults = (Fault(given.at, how) for how in How)
        elif given.each:
            faults = positions.sample(random.Random(given.seed), given.each)
        for fault in faults:
            if given.how and fault.how is not How[given.how]:
                continue
            print(f"{fault.at} {fault.how.name}  ", end="\r", flush=True)
            try:
                outcome = positions.master(disk, fault)
            except FaultNotMasteredError as error:
                failures += 1
                print(error, flush=True)
            else:
                counts["runs"] += 1
                counts["operations refused"] += len(outcome.refused)
                counts["runs in which a volume failed"] += bool(outcome.failed_volumes)
    print(f"{len(positions.kinds)} positions of {len(positions.of_kind)} kinds: {dict(counts)}")
    print(f"{failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
