"""The real block storage on a pool in a directory, with two tenants, ready to be served."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from bockd.blockstorage.contract import Quota
from bockd.blockstorage.quota import DEFAULT_QUOTA
from bockd.blockstorage.running import StorageContext
from bockd.blockstorage.service import PoolBlockStorage
from bockd.blockstorage.trashcontract import NO_TRASH, TrashRules
from bockd.daemon.attached import AttachedVolumes
from bockd.drivers.local.pool import LocalPool
from bockd.identity.accounts import Accounts
from bockd.identity.local import LocalIdentity
from bockd.nbd.server.nbd_server import NbdServer
from bockd.pool.pool import Pool
from bockd.runtime.asyncbridge import AsyncBridge
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import Spawn, Steps

from ..api.public import Account, Opening, Service
from ..daemon.driver import IS_RBD, rbd_settings


def on_pool(
    root: Path,
    quota: Quota = DEFAULT_QUOTA,
    prepare: Callable[[StorageContext], Steps[None]] | None = None,
    trash: TrashRules = NO_TRASH,
) -> Opening:
    """A service on a pool in `root`, which is closed with it. `prepare` is run first."""

    @asynccontextmanager
    async def opening() -> AsyncIterator[Service]:
        runner = StepRunner()
        pool: Pool | None = None
        try:
            async with trio.open_nursery() as background:

                def spawn(steps: Steps[None]) -> None:
                    background.start_soon(runner.run, steps)

                pool = open_pool(root, spawn)
                accounts = Accounts(pool.index)
                server = NbdServer(runner=runner)
                exports = AttachedVolumes(
                    pool, server, AsyncBridge(lambda: background), on_idle=lambda _: None
                )
                context = StorageContext(pool, exports, quota, trash=trash)
                if prepare is not None:
                    await runner.run(prepare(context))
                yield Service(
                    PoolBlockStorage(context, runner),
                    LocalIdentity(pool.index, runner, time.time, b"k" * 32),
                    new_account(accounts, "demo"),
                    new_account(accounts, "other"),
                )
                await runner.run(pool.close_all())
        finally:
            # As in the daemon: when what the pool does in the background is done.
            if pool is not None:
                pool.release()

    return opening


def open_pool(root: Path, spawn: Spawn) -> Pool:
    """A pool of the kind that the tests are run for."""
    if not IS_RBD:
        return LocalPool.open(root, spawn)
    from bockd.drivers.rbd.pool import RbdPool  # where Ceph's modules are

    post = trio.lowlevel.current_trio_token().run_sync_soon
    return RbdPool.open(rbd_settings(root), root / "replica", spawn, post)


def new_account(accounts: Accounts, name: str) -> Account:
    """A tenant with one user of the same name."""
    password = secrets.token_urlsafe()
    tenant = accounts.create_tenant(name)
    accounts.create_user(name, password, (tenant.id,))
    key = accounts.create_access_key(name)
    return Account(name, password, key.access_key, key.secret_key, tenant.id, tenant.name)
