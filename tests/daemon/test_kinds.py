"""The kind of pool that a daemon serves is imported when it is asked for, and no other."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from bockd.daemon.backend import BackendKind
from bockd.daemon.kinds import KINDS
from bockd.model import PoolDriver
from tests.drivers.rbd.ceph import need_modules

if TYPE_CHECKING:
    from bockd.daemon.localbackend import LocalBackend
    from bockd.daemon.rbdbackend import RbdBackend

    _KINDS: tuple[BackendKind, ...] = (LocalBackend, RbdBackend)

CODE = """
import sys
from dataclasses import replace
from bockd.config import Settings
from bockd.daemon.kinds import backend_kind
from bockd.model import PoolDriver

settings = Settings()
settings = replace(settings, pool=replace(settings.pool, driver=PoolDriver(sys.argv[1])))
print(backend_kind(settings).__name__)
print(*sorted(name for name in sys.modules if name.startswith("bockd.drivers.") or name == "rbd"))
"""


@pytest.mark.parametrize("driver", PoolDriver)
def test_only_the_kind_that_is_asked_for_is_imported(driver: PoolDriver) -> None:
    if driver is PoolDriver.RBD:
        need_modules()
    done = subprocess.run(
        [sys.executable, "-c", CODE, driver], capture_output=True, text=True, check=False
    )
    name, modules = done.stdout.splitlines()
    assert name == KINDS[driver][1], done.stderr
    others = {f"bockd.drivers.{other}.pool" for other in PoolDriver if other is not driver}
    assert not others & set(modules.split()), modules
    assert ("rbd" in modules.split()) == (driver is PoolDriver.RBD)


def test_there_is_one_for_each_driver() -> None:
    assert set(KINDS) == set(PoolDriver)
