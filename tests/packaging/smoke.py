"""A short use of all that an installation must bring, on a clean machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager

from bockd import __version__
from tests.packaging.machine import Machine

POOL = "/var/lib/bockd"
SOCKET = f"{POOL}/nbd.sock"


def use(
    on: Machine, daemon: Callable[[], AbstractContextManager[None]], programs: str = "/usr/bin"
) -> None:
    """Make volumes, read and write, take a snapshot, clone it, restart, export, import, check.

    `daemon` starts it, `programs` is where bock and bockd are."""
    bock, bockd = f"{programs}/bock", f"{programs}/bockd"
    with daemon():
        info = json.loads(on.run(bock, "info", "--json"))
        assert (info["version"], info["fast_lane"]) == (__version__, "compiled")
        on.run(bock, "volume", "create", "disk1", "--size", "64MiB")
        io(on, "disk1", "write -P 7 0 1M", "flush")
        on.run(bock, "snapshot", "create", "disk1", "before")
        io(on, "disk1", "write -P 9 0 1M", "flush")
        on.run(bock, "volume", "create", "disk2", "--from-snapshot", "before")
        on.run(bockd, "check")
        on.run(bockd, "scrub")
    with daemon():
        io(on, "disk1", "read -P 9 0 1M")
        io(on, "disk2", "read -P 7 0 1M")
        on.run(bock, "volume", "export", "disk2", "/root/disk2.qcow2")
        on.run("qemu-img", "check", "/root/disk2.qcow2")
        on.run(bock, "volume", "import", "/root/disk2.qcow2", "--name", "disk3")
        io(on, "disk3", "read -P 7 0 1M")
    on.run(bockd, "check")


def io(on: Machine, volume: str, *commands: str) -> None:
    """Have qemu-io do it to a volume; what it reads must be what was said."""
    asked = [part for command in commands for part in ("-c", command)]
    said = on.run("qemu-io", "-f", "raw", *asked, f"nbd+unix:///{volume}?socket={SOCKET}")
    assert "failed" not in said, said
