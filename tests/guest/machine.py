"""A guest whose QEMU the daemon may talk to, and what is seen of its disks from inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..vm.qemu import listening, monitor_arguments
from .vm import Begin, Guest

WAIT_SECONDS = 180
"""For what the guest's kernel does by itself, in tenths of which the guest looks."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A running VM, registered under a name."""

    name: str
    guest: Guest

    def disks(self) -> dict[str, str]:
        """The virtio disks: each one's serial, by device."""
        listing = self.guest.run(
            "for disk in /sys/block/vd*; do "
            '[ -e $disk ] && echo "/dev/${disk##*/} $(cat $disk/serial)"; done; true'
        )
        return dict(line.split() for line in listing.splitlines())

    def wait_for_disk(self, serial: str) -> str:
        """The device of a disk, once it is there: the guest's kernel takes a moment."""
        return self._wait(
            f'[ "$(cat $disk/serial)" = {serial} ] && echo /dev/${{disk##*/}} && exit',
            f"the disk {serial}",
        ).strip()

    def wait_until_written(self, device: str, writes: int) -> None:
        """Return once that many writes have been done on a disk since it came."""
        self._wait(
            f"[ $disk = /sys/block/{device.removeprefix('/dev/')} ] && "
            f"set -- $(cat $disk/stat) && [ $5 -ge {writes} ] && exit",
            f"{writes} writes",
        )

    def _wait(self, step: str, awaited: str) -> str:
        """Run `step` for each disk until it exits."""
        return self.guest.run(
            f"for try in $(seq {WAIT_SECONDS * 10}); do "
            f"for disk in /sys/block/vd*; do [ -e $disk ] && {step}; done; usleep 100000; done; "
            f"echo waited in vain for {awaited}; exit 1",
            timeout_seconds=2 * WAIT_SECONDS,
        )

    def start(self, command: str) -> Callable[[], str]:
        """Run a command beside what comes; returns what waits for its end and tells its status."""
        self.guest.run(f"rm -f /tmp/ended; ({command}; echo $? >/tmp/ended) >/dev/null 2>&1 &")

        def ended() -> str:
            return self.guest.run(
                f"for try in $(seq {WAIT_SECONDS * 10}); do "
                "[ -s /tmp/ended ] && cat /tmp/ended && exit; usleep 100000; done; exit 1",
                timeout_seconds=2 * WAIT_SECONDS,
            ).strip()

        return ended


@contextmanager
def machine(name: str, begin: Begin, directory: Path, *arguments: str) -> Iterator[Machine]:
    """A VM that is up, for the duration; its QMP socket is `qmp_socket(directory, name)`. At the
    end it dies like one that is killed."""
    with ExitStack() as running:
        # In the end the listener is QEMU's alone: when QEMU dies, nobody listens.
        with listening(qmp_socket(directory, name)) as listener:
            guest = running.enter_context(
                begin(
                    directory / f"{name}.log",
                    *monitor_arguments(listener),
                    *arguments,
                    pass_fds=[listener.fileno()],
                )
            )
        yield Machine(name, guest)


def qmp_socket(directory: Path, name: str) -> Path:
    """Where the machine's QEMU takes commands."""
    return directory / f"{name}.qmp"
