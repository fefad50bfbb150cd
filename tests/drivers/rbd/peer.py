"""A gateway that takes one volume, writes to it, and gives it back when it is asked.

    python -m tests.drivers.rbd.peer SETTINGS NAME RUN REPLICA busy|idle|deaf

SETTINGS are those of [rbd] as JSON. The process takes the volume firmly and prints `taken`. If it
is busy, it writes and prints a line for each write that was answered: the block, and how often that
has been written. It prints `given` or `lost` at its end.
"""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bockd.config.rbd import RbdSettings
from bockd.drivers.rbd import images
from bockd.drivers.rbd.bus import Bus
from bockd.drivers.rbd.claims import RbdClaim
from bockd.drivers.rbd.connection import connect, open_pool
from bockd.drivers.rbd.errors import CEPH_ERRORS, from_volume_error
from bockd.drivers.rbd.index import SharedIndex
from bockd.drivers.rbd.log import Log
from bockd.drivers.rbd.messages import Manner
from bockd.drivers.rbd.radosobjects import RadosObjects
from bockd.drivers.rbd.records import Identity, RbdVolumeRecord, Tenures, put_record
from bockd.drivers.rbd.settings import index_options
from bockd.drivers.rbd.taking import Taken, Taker
from bockd.errors import VolumeTakenError
from bockd.failpoints import arm
from bockd.model import BLOCK_SIZE, MIB, VolumeId
from bockd.runtime.steps import run_inline

from . import waited
from .dying import settings_of

VOLUME = VolumeId(7)
SIZE = 8 * MIB
BLOCKS = 16


class Peer:
    """A gateway. `deaf`: it never does what it is asked."""

    def __init__(
        self,
        settings: RbdSettings,
        who: Identity,
        replica: Path,
        *,
        deaf: bool = False,
    ) -> None:
        self.settings = settings
        self._stack = ExitStack()
        self.limited = limited = connect(settings, index_options(settings))
        self._stack.callback(limited.shutdown)
        self.ioctx = open_pool(limited, settings)
        self._stack.callback(self.ioctx.close)
        self._log = Log(RadosObjects(self.ioctx))
        created = self._log.create("0" * 32)
        self.index = SharedIndex.open(self._log, replica, run=who.run, clock=lambda: 0.0)
        self._stack.callback(self.index.close)
        if created:
            self._create_volume()
        self.taken: Taken[RbdClaim] | None = None
        self.has_clients = False
        self.stopping = threading.Event()
        self.stopped = threading.Event()
        self.hold: threading.Event | None = None
        """What it waits for before it does what it is asked."""
        self._deaf = deaf
        self._owner = ThreadPoolExecutor(1)
        self._stack.callback(self._owner.shutdown)
        self.bus = Bus(settings, self.ioctx, who, self._release)
        self._stack.callback(self.bus.close)
        self.tenures = Tenures(self.index)
        self.taker = Taker(who, partial(RbdClaim, settings, limited), self.bus, self.tenures)

    def _create_volume(self) -> None:
        record = RbdVolumeRecord(
            id=VOLUME,
            name="seven",
            size_bytes=SIZE,
            created_at=0.0,
            from_snapshot=None,
            failed=None,
            image=images.new_name(),
        )
        images.create_image(self.ioctx, record.image, SIZE)
        self.index.update(lambda txn: put_record(txn, record))

    def close(self) -> None:
        if self.taken is not None:
            self.give_back()
        self._stack.close()

    def take(self, manner: Manner) -> Taken[RbdClaim]:
        self.taken = run_inline(self.taker.take(VOLUME, manner))
        return self.taken

    def give_back(self) -> None:
        taken, self.taken = self.taken, None
        assert taken is not None
        run_inline(self.taker.give_back(taken))

    def _release(self, image: str, manner: Manner) -> Future[bool]:
        return Future() if self._deaf else self._owner.submit(self._let_go, image, manner)

    def _let_go(self, image: str, manner: Manner) -> bool:
        if self.hold is not None:
            self.hold.wait()
        if self.taken is None or self.taken.record.image != image:
            return True
        if self.has_clients:
            if manner is Manner.POLITE:
                return False
            self.stopping.set()
            self.stopped.wait()
        self.give_back()
        return True

    # -- data --------------------------------------------------------------------------------

    def write(self, block: int, number: int) -> None:
        """Write to a block how often that was done."""
        assert self.taken is not None
        waited.write(self.taken.claim.image, number.to_bytes(8, "big") * 512, block * BLOCK_SIZE)

    def read(self, block: int) -> int:
        """Read what was written; all of a block must be the same."""
        assert self.taken is not None
        data = waited.read(self.taken.claim.image, block * BLOCK_SIZE, BLOCK_SIZE)
        assert data == data[:8] * 512
        return int.from_bytes(data[:8], "big")

    def write_on(self) -> bool:
        """Write to all blocks at once, again and again, until it is stopped. Return False if the
        volume was taken."""
        lost: list[BaseException] = []

        def write(block: int) -> None:
            number = 0
            while not self.stopping.is_set() and not lost:
                number += 1
                try:
                    self.write(block, number)
                except (OSError, *CEPH_ERRORS) as error:
                    lost.append(from_volume_error(error, "writing"))
                    return
                print(f"{block} {number}\n", end="", flush=True)

        threads = [threading.Thread(target=write, args=(block,)) for block in range(BLOCKS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.stopped.set()
        assert all(isinstance(error, VolumeTakenError) for error in lost), lost
        return not lost


def main(settings: str, name: str, run: str, replica: str, kind: str) -> None:
    arm(os.environ)
    peer = Peer(settings_of(settings), Identity(name, run), Path(replica), deaf=kind == "deaf")
    peer.has_clients = kind == "busy"
    peer.take(Manner.FIRM)
    print("taken", flush=True)
    if kind == "busy":
        print("given" if peer.write_on() else "lost", flush=True)
    elif kind == "idle":
        peer.give_back()
    sys.stdin.read()
    peer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
