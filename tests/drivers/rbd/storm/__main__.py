"""Storms over gateways, one for each seed, on a cluster of their own.

python -m tests.drivers.rbd.storm --kills 200 --hangs 50 --osd-kills 30   # `make soak-ceph`
python -m tests.drivers.rbd.storm --seed 17 --runs 1                      # one seed again
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

from tests.drivers.rbd.cluster import Cluster
from tests.drivers.rbd.storm.storm import Counts, play

KILLS_OF_A_RUN = 20


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.drivers.rbd.storm")
    parser.add_argument("--seed", type=int, default=None, help="the first seed (default: the time)")
    parser.add_argument("--runs", type=int, default=None, help="storms, one for each seed")
    parser.add_argument("--kills", type=int, default=200, help="of gateways, in all")
    parser.add_argument("--hangs", type=int, default=50, help="of gateways, in all")
    parser.add_argument("--osd-kills", type=int, default=30, help="in all")
    parser.add_argument("--osds", type=int, default=3)
    given = parser.parse_args()
    first = int(time.time()) if given.seed is None else given.seed
    storms = -(-given.kills // KILLS_OF_A_RUN)
    runs = given.runs or storms
    total, began = Counts(), time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="ceph-storm-"))
    cluster = Cluster(work / "cluster", given.osds)
    try:
        cluster.start()
        for seed in range(first, first + runs):
            print(f"seed {seed}: {total}", flush=True)
            acts = (KILLS_OF_A_RUN, -(-given.hangs // storms), -(-given.osd_kills // storms))
            with cluster.renewing_leases():
                total.add(play(work, cluster, seed, *acts))
    finally:
        cluster.stop()
    shutil.rmtree(work)
    seconds = time.monotonic() - began
    print(f"seeds {first} to {first + runs - 1}: {total}; no failure; {seconds:.0f} s")
    print(total.table())
    print(f"{cluster.helped} times a placement group had no lease any more")


if __name__ == "__main__":
    main()
