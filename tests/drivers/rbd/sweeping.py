"""A gateway that sweeps without patience, and dies at the failpoint its environment names.

python -m tests.drivers.rbd.sweeping SETTINGS REPLICA
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bockd.failpoints import arm

from .dying import settings_of
from .pooldriver import RbdDriver

MAX_DEPTH = 1


def main(settings: str, replica: str) -> None:
    # Only where Ceph's modules are.
    from bockd.drivers.rbd.imagestore import RbdImageStore
    from bockd.drivers.rbd.making import GENERATIONS
    from bockd.drivers.rbd.sweep import Patience, Sweep

    driver = RbdDriver(settings_of(settings), Path(replica))
    session = driver.rbd.session
    store = RbdImageStore(session.settings)
    arm(os.environ)
    session.table.enter()
    sweep = Sweep(session.index, store, MAX_DEPTH, Patience(0.0, 0.0))
    for _ in range(GENERATIONS):
        sweep.look()
    sweep.flatten()
    session.table.leave()
    store.close()
    driver.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
