"""A real QEMU that runs its firmware and no guest: all of QMP, and nobody to let go of a disk."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from bockd.vm.monitor import Monitor, conversation

from ..guest.initramfs import find_tool

T = TypeVar("T")


@contextmanager
def qemu(
    qmp_socket: Path, *arguments: str, pass_fds: Sequence[int] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """QEMU with its QMP socket at a path, for the duration. It may be connected to at once."""
    with listening(qmp_socket) as listener:
        command = [
            find_tool("qemu-system-x86_64"),
            *("-accel", "tcg", "-m", "64M", "-nodefaults", "-display", "none"),
            *monitor_arguments(listener),
            *arguments,
        ]
        process = subprocess.Popen(command, pass_fds=[listener.fileno(), *pass_fds])
    with process:
        try:
            yield process
        finally:
            process.kill()


def converse(qmp_socket: Path, talk: Callable[[Monitor], Awaitable[T]]) -> T:
    """A conversation of the test's own with whoever is at the socket."""

    async def run() -> T:
        async with conversation(str(qmp_socket)) as monitor:
            return await talk(monitor)

    return asyncio.run(run())


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A listening socket at a path, whatever was there; made anew as QEMU would. The file stays."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen(1)
        yield listener


def monitor_arguments(listener: socket.socket) -> tuple[str, ...]:
    """QMP on a listening socket that QEMU inherits: clients wait in its backlog, not we."""
    return (
        *("-chardev", f"socket,id=qmp,fd={listener.fileno()},server=on,wait=off"),
        *("-mon", "chardev=qmp,mode=control"),
    )
