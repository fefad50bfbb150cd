"""A QEMU guest that runs shell commands for a test.

The processor is emulated (`-accel tcg`), so that the tests run where there is no KVM; that makes
the guest slow, and every wait has a limit that fails with the guest's console. The guest sees the
host's loopback interface as HOST_ADDRESS.
"""

from __future__ import annotations

import base64
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from .initramfs import CHANNEL_NAME, KERNEL_ARGUMENTS, find_kernel, find_tool

HOST_ADDRESS = "10.0.2.2"
"""Where QEMU's user networking shows the host's 127.0.0.1."""

BOOT_TIMEOUT_SECONDS = 120.0
"""A boot takes about 8 s on an idle core; the machine may be busy with other tests."""

COMMAND_TIMEOUT_SECONDS = 120.0

CONSOLE_TAIL_BYTES = 4096
"""As much of the console as tells why a guest died, without drowning the report."""


class GuestError(Exception):
    """The guest died, hung, or ran a command that failed."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that has ended: its exit status, and its output with its errors in it."""

    status: int
    output: str


class Guest:
    """A running guest. Commands run one after the other, as root, with /bin/sh of busybox."""

    def __init__(self, channel: socket.socket, console: Path):
        self._channel = channel
        self._console = console
        self._received = bytearray()

    def wait_until_up(self, *, timeout_seconds: float = BOOT_TIMEOUT_SECONDS) -> Self:
        """Wait for the guest's user space; raises GuestError when it does not come."""
        self._read_line(time.monotonic() + timeout_seconds, "to boot")
        return self

    def wait_until_off(self, *, timeout_seconds: float = BOOT_TIMEOUT_SECONDS) -> None:
        """Wait until a guest that is shutting down has ended; raises GuestError if it goes on."""
        self._channel.settimeout(timeout_seconds)
        try:
            while self._channel.recv(65536):
                pass
        except TimeoutError:
            raise self._error("timed out waiting for the guest to power off") from None
        except ConnectionResetError:
            pass

    def run(self, command: str, *, timeout_seconds: float = COMMAND_TIMEOUT_SECONDS) -> str:
        """Run a command that must succeed and return its output; raises GuestError otherwise."""
        finished = self.attempt(command, timeout_seconds=timeout_seconds)
        if finished.status != 0:
            raise self._error(
                f"the guest's command ended with status {finished.status}: {command}\n"
                f"--- output\n{finished.output}"
            )
        return finished.output

    def attempt(
        self, command: str, *, timeout_seconds: float = COMMAND_TIMEOUT_SECONDS
    ) -> Finished:
        """Run a command that may fail; raises GuestError only when it does not end in time."""
        deadline = time.monotonic() + timeout_seconds
        awaited = f"to end: {command}"
        self._channel.settimeout(timeout_seconds)
        try:
            self._channel.sendall(base64.b64encode(command.encode()) + b"\n")
        except OSError as error:
            raise self._error(f"the guest takes no command ({error})") from error
        status, length_bytes = self._read_line(deadline, awaited).split()
        output = self._read(int(length_bytes), deadline, awaited)
        return Finished(int(status), output.decode(errors="replace"))

    def _read_line(self, deadline: float, awaited: str) -> str:
        while b"\n" not in self._received:
            self._receive(deadline, awaited)
        return self._read(self._received.index(b"\n") + 1, deadline, awaited).decode().rstrip()

    def _read(self, length_bytes: int, deadline: float, awaited: str) -> bytes:
        while len(self._received) < length_bytes:
            self._receive(deadline, awaited)
        taken = bytes(self._received[:length_bytes])
        del self._received[:length_bytes]
        return taken

    def _receive(self, deadline: float, awaited: str) -> None:
        self._channel.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            data = self._channel.recv(65536)
        except TimeoutError:
            raise self._error(f"timed out waiting for the guest {awaited}") from None
        except OSError as error:
            raise self._error(f"lost the guest ({error}), waiting for it {awaited}") from error
        if not data:
            raise self._error(f"the guest ended, waiting for it {awaited}")
        self._received += data

    def _error(self, what: str) -> GuestError:
        console = self._console.read_bytes()[-CONSOLE_TAIL_BYTES:].decode(errors="replace")
        return GuestError(f"{what}\n--- console, and QEMU's own messages\n{console}")


class Begin(Protocol):
    """Begins a guest that is up, for the duration: `partial(boot, initramfs)`, `Booted.guest`."""

    def __call__(
        self, console: Path, *arguments: str, pass_fds: Sequence[int] = ()
    ) -> AbstractContextManager[Guest]:
        """`console` is the file that gets its messages. QEMU gets more arguments and open files."""
        ...


@contextmanager
def boot(
    initramfs: Path | None, console: Path, *arguments: str, pass_fds: Sequence[int] = ()
) -> Iterator[Guest]:
    """A guest that has booted (`Begin`); without an initramfs, from its disks."""
    with started(initramfs, console, *arguments, pass_fds=pass_fds) as guest:
        yield guest.wait_until_up()


@contextmanager
def started(
    initramfs: Path | None, console: Path, *arguments: str, pass_fds: Sequence[int] = ()
) -> Iterator[Guest]:
    """A guest whose QEMU has been started, and which is not up yet."""
    ours, theirs = socket.socketpair()
    with ours, console.open("wb") as messages:
        with theirs:
            command = [*_qemu_command(initramfs, theirs.fileno()), *arguments]
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=messages,
                stderr=messages,
                pass_fds=[theirs.fileno(), *pass_fds],
            )
        with process:
            try:
                yield Guest(ours, console)
            finally:
                process.kill()


def _qemu_command(initramfs: Path | None, channel: int) -> list[str]:
    return [
        find_tool("qemu-system-x86_64"),
        *("-accel", "tcg", "-cpu", "max", "-m", "512M"),
        *("-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"),
        *("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="),
        *("-chardev", f"socket,id=channel,fd={channel}"),
        *("-device", "virtio-serial-pci"),
        *("-device", f"virtserialport,chardev=channel,name={CHANNEL_NAME}"),
        *([] if initramfs is None else _kernel(initramfs)),
    ]


def _kernel(initramfs: Path) -> list[str]:
    return [
        *("-kernel", str(find_kernel()), "-initrd", str(initramfs)),
        *("-append", KERNEL_ARGUMENTS),
    ]
