"""A gateway that is in the middle of three operations: attaching, detaching and deleting a volume.

    python -m tests.drivers.rbd.hanging SETTINGS REPLICA TENANT

It has the volume open that it detaches. It prints `ready`, waits for a line, goes on, and prints
how each ended: the operation and the class of the error.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path

from bockd.blockstorage import volumes
from bockd.blockstorage.attachments import Attachments
from bockd.blockstorage.contract import Attachment, TenantId
from bockd.blockstorage.running import NoPublisher, StorageContext
from bockd.errors import BockdError
from bockd.model import NodeKind, VolumeId
from bockd.pool.index import Transaction
from bockd.pool.records import VolumeRecord
from bockd.runtime.steps import Steps, run_inline

from .dying import settings_of
from .pooldriver import RbdDriver


class Middle(NoPublisher):
    """Where operations wait for each other."""

    def __init__(self) -> None:
        self.reached = threading.Semaphore(0)
        self.go_on = threading.Event()

    def wait(self) -> None:
        self.reached.release()
        self.go_on.wait()

    async def publish(self, attachment: Attachment) -> None:
        self.wait()

    async def withdraw(self, attachment: Attachment, *, force: bool) -> str | None:
        self.wait()
        return None


def main(settings: str, replica: str, tenant: str) -> None:
    driver = RbdDriver(settings_of(settings), Path(replica))
    driver.rbd.session.table.enter()
    middle = Middle()
    context = StorageContext(driver.pool, middle)
    attachments = Attachments(context)
    owner = TenantId(tenant)
    ids = {
        name: VolumeId(driver.pool.find(NodeKind.VOLUME, name)) for name in ("one", "two", "three")
    }
    run_inline(driver.pool.use(NodeKind.VOLUME, ids["two"]))
    forget = volumes.forget_deleting

    def wait_and_forget(txn: Transaction, record: VolumeRecord) -> None:
        # In the transaction: its version is the next one.
        middle.wait()
        forget(txn, record)

    volumes.forget_deleting = wait_and_forget

    def operate(name: str, begin: Callable[[], Steps[object]]) -> threading.Thread:
        def run() -> None:
            ended = "done"
            try:
                run_inline(begin())
            except BockdError as error:
                ended = type(error).__name__
            print(f"{name} {ended}\n", end="", flush=True)

        thread = threading.Thread(target=run)
        thread.start()
        middle.reached.acquire()
        return thread

    threads = [
        operate("attach", lambda: attachments.attach(owner, "web1", ids["one"], None)),
        operate("detach", lambda: attachments.detach(owner, "web1", ids["two"])),
        operate("delete", lambda: volumes.Volumes(context).delete(owner, ids["three"])),
    ]
    print("ready", flush=True)
    sys.stdin.readline()
    middle.go_on.set()
    for thread in threads:
        thread.join()
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
