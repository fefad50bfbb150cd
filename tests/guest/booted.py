"""Guests that go on from the state of one that has booted.

An emulated processor takes seconds to boot, and more to start Python. So QEMU saves the state of
one guest that is up, its memory and its devices, as for a migration; other guests with the same
devices begin there. Each has a memory of its own; its random numbers are those of the others.
"""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bockd.vm.monitor import Monitor

from ..vm.qemu import converse, listening, monitor_arguments
from .vm import BOOT_TIMEOUT_SECONDS, Guest, boot, started

BYTES_PER_SECOND = 1 << 40
"""No limit: QEMU's own one is for networks."""


@dataclass(frozen=True, slots=True)
class Booted:
    """A guest that was up, and is no more."""

    initramfs: Path
    devices: tuple[str, ...]
    """What its QEMU was started with for more devices than every guest has."""
    state: Path

    @contextmanager
    def guest(
        self, console: Path, *arguments: str, pass_fds: Sequence[int] = ()
    ) -> Iterator[Guest]:
        """A guest that goes on where that one was (`vm.Begin`), with the time of today.
        `arguments` bring no devices."""
        incoming = ("-incoming", f"exec:cat {shlex.quote(str(self.state))}")
        with started(
            self.initramfs, console, *self.devices, *incoming, *arguments, pass_fds=pass_fds
        ) as guest:
            guest.run(f"date -s @{int(time.time())}", timeout_seconds=BOOT_TIMEOUT_SECONDS)
            yield guest


def save(
    initramfs: Path,
    directory: Path,
    *devices: str,
    prepare: Callable[[Guest], None] = lambda _: None,
) -> Booted:
    """Boot a guest with more devices, prepare it, and save its state in a directory."""
    qmp_socket, state = directory / "qmp", directory / "state"
    with (
        listening(qmp_socket) as listener,
        boot(
            initramfs,
            directory / "console.log",
            *devices,
            *monitor_arguments(listener),
            pass_fds=[listener.fileno()],
        ) as guest,
    ):
        prepare(guest)
        converse(qmp_socket, partial(_save, state))
    return Booted(initramfs, devices, state)


async def _save(state: Path, monitor: Monitor) -> None:
    await monitor.execute("migrate-set-parameters", {"max-bandwidth": BYTES_PER_SECOND})
    events = [{"capability": "events", "state": True}]
    await monitor.execute("migrate-set-capabilities", {"capabilities": events})
    heard = monitor.listen("MIGRATION")
    await monitor.execute("migrate", {"uri": f"exec:cat >{shlex.quote(str(state))}"})
    status = ""
    async with asyncio.timeout(BOOT_TIMEOUT_SECONDS):
        while status != "completed":
            event: Any = await heard.get()
            status = event["data"]["status"]
            assert status != "failed", "QEMU did not save the guest's state"
