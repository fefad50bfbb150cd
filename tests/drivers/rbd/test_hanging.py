"""A gateway hangs in the middle of operations; another one resolves them; the first comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import trio

from bockd.blockstorage.attachments import Attachments
from bockd.blockstorage.contract import Attachment, NewVolume, Status
from bockd.blockstorage.interrupted import resolve_interrupted
from bockd.blockstorage.records import Ledger
from bockd.blockstorage.recount import find_problems
from bockd.blockstorage.running import NoPublisher, StorageContext
from bockd.blockstorage.volumes import Volumes
from bockd.blockstorage.working import earlier_runs_of
from bockd.config.rbd import RbdSettings
from bockd.daemon.detachings import Detachings
from bockd.daemon.retrying import Retrying
from bockd.daemon.stranded import Stranded
from bockd.identity.accounts import Accounts
from bockd.model import VolumeId
from bockd.pool.pool import Pool
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import Steps, run_inline
from tests.drivers.rbd.ceph import need_modules
from tests.drivers.rbd.dying import as_text
from tests.drivers.rbd.pooldriver import RbdDriver

need_modules()


class Recalling(NoPublisher):
    """What the daemon does about a volume that another gateway has."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def withdraw(self, attachment: Attachment, *, force: bool) -> str | None:
        return await self._pool.recall(attachment.volume_id, force=force)


def test_a_gateway_that_hangs_and_comes_back_breaks_nothing(
    rbd_namespace: RbdSettings, tmp_path: Path
) -> None:
    here = RbdDriver(replace(rbd_namespace, gateway="here"), tmp_path / "here")
    table = here.rbd.session.table
    table.enter()
    context = StorageContext(here.pool, Recalling(here.pool))
    tenant = Accounts(here.pool.index).create_tenant("acme").id
    ids = [
        here.run(Volumes(context).create(tenant, NewVolume(1, name))).id
        for name in ("one", "two", "three")
    ]
    here.run(Attachments(context).attach(tenant, "web1", ids[1], None))

    def statuses() -> list[Status | None]:
        here.pool.index.refresh()
        with here.pool.index.reading() as txn:
            found = [Ledger(txn).owned_volume(one) for one in ids]
        return [None if owned is None else owned.volume.status for owned in found]

    settings = as_text(replace(rbd_namespace, gateway="there"))
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.drivers.rbd.hanging", settings, tmp_path / "there", tenant],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "ready\n"
        between = [Status.ATTACHING, Status.DETACHING, Status.DELETING]
        assert statuses() == between
        # A start of another gateway leaves them alone.
        run_inline(resolve_interrupted(context, earlier_runs_of(table.author)))
        assert statuses() == between

        def spawn(steps: Steps[None]) -> None:
            here.run(steps)

        async def look_after() -> None:
            rounds = Stranded(context, table, StepRunner(), Detachings(context, Retrying(spawn)))
            await rounds.round()
            assert statuses() == between
            child.send_signal(signal.SIGSTOP)
            # Its threads go on until one of them has come to see the signal.
            os.waitpid(child.pid, os.WUNTRACED)
            await rounds.round()
            assert statuses() == between
            await rounds.round()

        trio.run(look_after)
        assert statuses() == [Status.AVAILABLE, Status.AVAILABLE, None]
        again = here.run(Attachments(context).attach(tenant, "web2", ids[0], None))
        child.send_signal(signal.SIGCONT)
        print("go on", file=child.stdin, flush=True)
        ended = dict(child.stdout.readline().split() for _ in range(3))
        assert ended == {
            "attach": "InvalidStateError",
            "detach": "done",
            "delete": "NotFoundError",
        }
    finally:
        child.kill()
        child.communicate()
    assert statuses() == [Status.IN_USE, Status.AVAILABLE, None]
    with here.pool.index.reading() as txn:
        assert find_problems(txn) == ()
        owned = Ledger(txn).owned_volume(VolumeId(ids[0]))
    assert owned is not None
    assert owned.volume.attachment == again
    here.close()
