"""One operation on the trash of a pool in Ceph, in a process that dies at the failpoint its
environment names.

    python -m tests.drivers.rbd.trashdying SETTINGS DIRECTORY OPERATION VOLUME SNAPSHOT
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bockd.failpoints import Failpoint, arm
from bockd.model import NodeKind

from .dying import settings_of
from .keeping import Keeping

OPERATIONS: dict[str, Callable[[Keeping, int, int], object]] = {
    "delete volume": lambda gateway, volume, _: gateway.delete(NodeKind.VOLUME, volume),
    "delete snapshot": lambda gateway, _, shot: gateway.delete(NodeKind.SNAPSHOT, shot),
    "restore volume": lambda gateway, volume, _: gateway.restore(volume),
    "restore snapshot": lambda gateway, _, shot: gateway.restore(shot),
    "expire volume": lambda gateway, volume, _: expire(gateway, volume),
    "expire snapshot": lambda gateway, _, shot: expire(gateway, shot),
}

BEFORE: dict[str, Sequence[Failpoint]] = {
    "delete volume": (
        Failpoint.TRASH_CLOSED,
        Failpoint.TRASH_FORMAT,
        Failpoint.API_TRASHED,
        Failpoint.TRASH_CHANGED,
    ),
    "restore volume": (Failpoint.API_RESTORED,),
    "restore snapshot": (Failpoint.RESTORE_CHANGED,),
    "expire volume": (Failpoint.API_TRASH_FORGOTTEN,),
}
"""The failpoints that each comes to while nothing is done."""

AFTER: dict[str, Sequence[Failpoint]] = {
    "delete volume": (Failpoint.SHARED_APPENDED, Failpoint.TRASH_COMMITTED),
    "delete snapshot": (Failpoint.TRASH_COMMITTED,),
    "restore volume": (Failpoint.RESTORE_COMMITTED,),
    "expire volume": (Failpoint.IMAGE_FORGOTTEN,),
    "expire snapshot": (Failpoint.IMAGE_FORGOTTEN,),
}
"""Those that it comes to when all is done."""


def expire(gateway: Keeping, node: int) -> None:
    """What the daemon does with what is due: nothing if it is gone."""
    for record in gateway.records():
        if record.node.id == node:
            gateway.run(gateway.trash.purge(record))


def main(settings: str, directory: str, operation: str, volume: str, snapshot: str) -> None:
    gateway = Keeping(settings_of(settings), Path(directory), "dying")
    arm(os.environ)
    OPERATIONS[operation](gateway, int(volume), int(snapshot))
    gateway.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
