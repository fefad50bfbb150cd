"""One operation on a pool in Ceph, in a process that dies at the failpoint its environment names.

    python -m tests.drivers.rbd.pooldying SETTINGS REPLICA OPERATION

The pool has a volume `one` with a snapshot `s`, and a volume `other`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bockd.failpoints import Failpoint, arm
from bockd.model import MIB, NodeKind, SnapshotId, VolumeId
from bockd.pool.nodes import Nodes
from bockd.pool.pool import Pool, nothing_more
from bockd.runtime.steps import Steps

from .dying import settings_of
from .pooldriver import RbdDriver


def frozen_name(_nodes: Nodes, _node: int) -> str:
    """The name of what `other` is frozen to."""
    return "frozen"


OPERATIONS: dict[str, Callable[[Pool, VolumeId, VolumeId, SnapshotId], Steps[Any]]] = {
    "create": lambda pool, one, other, s: pool.create_volume("new", MIB),
    "clone": lambda pool, one, other, s: pool.create_volume("new", 2 * MIB, s),
    "extend": lambda pool, one, other, s: pool.extend_volume(one, 2 * MIB),
    "revert": lambda pool, one, other, s: pool.revert_volume(one, s),
    "fill": lambda pool, one, other, s: pool.fill_volume(other, s, nothing_more),
    "freeze": lambda pool, one, other, s: pool.freeze_volume(other, frozen_name, nothing_more),
    "delete": lambda pool, one, other, s: pool.delete_volume(other),
    "snapshot": lambda pool, one, other, s: pool.create_snapshot(one, "t"),
    "delete snapshot": lambda pool, one, other, s: pool.delete_snapshot(s),
}

USED = frozenset({"extend", "snapshot"})
"""Those that are done to a volume in use."""

POINTS = {
    **dict.fromkeys(OPERATIONS, (Failpoint.IMAGE_MADE, Failpoint.IMAGE_NAMED)),
    **dict.fromkeys(("revert", "fill"), (Failpoint.IMAGE_MADE, Failpoint.IMAGE_FORGOTTEN)),
    **dict.fromkeys(("delete", "delete snapshot"), (Failpoint.IMAGE_FORGOTTEN,)),
}
"""The failpoints that each comes to."""


def main(settings: str, replica: str, operation: str) -> None:
    driver = RbdDriver(settings_of(settings), Path(replica))
    pool = driver.pool
    one, other = (VolumeId(pool.find(NodeKind.VOLUME, name)) for name in ("one", "other"))
    snapshot = SnapshotId(pool.find(NodeKind.SNAPSHOT, "s"))
    if operation in USED:
        driver.run(pool.use(NodeKind.VOLUME, one))
    arm(os.environ)
    driver.run(OPERATIONS[operation](pool, one, other, snapshot))
    driver.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
