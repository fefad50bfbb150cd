"""A client that is killed in the middle of removing an image.

    python -m tests.drivers.rbd.removing SETTINGS IMAGE OBJECTS

It prints its address, and is killed when so many objects of the image's data are gone.
"""

from __future__ import annotations

import os
import signal
import sys

from .dying import settings_of


def main(settings: str, image: str, objects: str) -> None:
    # Only where Ceph's modules are.
    from bockd.drivers.rbd.binding import rbd
    from bockd.drivers.rbd.connection import connect, open_pool
    from bockd.drivers.rbd.settings import index_options

    where = settings_of(settings)
    cluster = connect(where, index_options(where))
    print(cluster.get_addrs(), flush=True)

    def on_progress(done: int, _total: int) -> int:
        if done >= int(objects):
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    rbd.RBD().remove(open_pool(cluster, where), image, on_progress=on_progress)


if __name__ == "__main__":
    main(*sys.argv[1:])
