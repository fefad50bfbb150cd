"""An NBD export as a disk of the guest, with an ext4 file system on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .vm import HOST_ADDRESS, Guest

MIB = 1 << 20
SECTOR_BYTES = 512


@dataclass(frozen=True, slots=True)
class Disk:
    """One of the guest's NBD devices, attached, and where its file system is mounted."""

    guest: Guest
    device: str
    mount_point: str

    def make_file_system(self) -> None:
        self.guest.run(f"mkfs.ext4 -q {self.device}")

    @contextmanager
    def mounted(self, *, read_only: bool = False) -> Iterator[None]:
        """The file system is mounted for the duration, and on the disk (flushed) afterwards."""
        options = "ro" if read_only else "rw"
        self.guest.run(
            f"mkdir -p {self.mount_point} && "
            f"mount -t ext4 -o {options} {self.device} {self.mount_point}"
        )
        try:
            yield
        finally:
            self.guest.run(f"umount {self.mount_point}")

    def wait_for_size(self, size_bytes: int) -> None:
        """Return once the kernel knows that the disk has that size."""
        size = f"/sys/class/block/{self.device.removeprefix('/dev/')}/size"
        self.guest.run(
            f"for try in $(seq 600); do [ $(cat {size}) = {size_bytes // SECTOR_BYTES} ] && exit; "
            f"usleep 100000; done; cat {size}; exit 1"
        )

    def grow_file_system(self, size_bytes: int) -> None:
        """Make the mounted file system as large as its disk, which has that size."""
        self.wait_for_size(size_bytes)
        self.guest.run(f"resize2fs {self.device}")
        blocks, block_bytes = self.guest.run(f"stat -f -c '%b %S' {self.mount_point}").split()
        assert int(blocks) * int(block_bytes) > size_bytes * 9 // 10

    def write_file(self, name: str, size_mib: int) -> None:
        """Fill a file with random bytes, on the disk when this returns."""
        self.guest.run(
            f"dd if=/dev/urandom of={self.mount_point}/{name} bs=1M count={size_mib} conv=fsync"
        )

    def remove_file(self, name: str) -> None:
        self.guest.run(f"rm {self.mount_point}/{name}")

    def checksums(self) -> dict[str, str]:
        """The SHA-256 of each file, by name; after a fresh mount, of what the disk holds."""
        listing = self.guest.run(
            f"cd {self.mount_point} && find . -type f | sort | xargs -r sha256sum"
        )
        return {line.split()[1]: line.split()[0] for line in listing.splitlines()}

    def check_file_system(self) -> None:
        """A full check that changes nothing; raises GuestError when it finds anything."""
        self.guest.run(f"e2fsck -fn {self.device}")


@contextmanager
def attached(guest: Guest, port: int, export: str, *, number: int = 0) -> Iterator[Disk]:
    """The export of the host's server at `port` as /dev/nbd`number`, for the duration."""
    device = f"/dev/nbd{number}"
    # The kernel's client takes its block size from this option, never from the server.
    guest.run(f"/sbin/nbd-client {HOST_ADDRESS} {port} {device} -N '{export}' -b 512")
    try:
        yield Disk(guest, device, f"/mnt/{number}")
    finally:
        guest.run(f"/sbin/nbd-client -d {device}")
