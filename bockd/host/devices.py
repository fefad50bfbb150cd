"""The device of a connection that is recorded, whichever kind it is: where it is, and its end."""

from __future__ import annotations

from dataclasses import replace

from bockd.errors import DeviceError
from bockd.host import blockdevices, kernelnbd, loopdevices
from bockd.host.records import Connection, current_boot
from bockd.tls.trust import Trust


def find_device(known: Connection) -> str | None:
    """Return the device of a record if it exists and still belongs to this connection, else
    None."""
    if known.file is not None:
        same_boot = known.boot == current_boot()
        if (
            known.device
            and same_boot
            and loopdevices.is_on(known.device, known.file, known.disk_sequence)
        ):
            return known.device
        return loopdevices.find_device(known.file)
    pid = kernelnbd.find_pid(known.device)
    ours = pid is not None and known.boot == current_boot() and known.pid in (None, pid)
    return known.device if ours else None


def is_dead(known: Connection, device: str) -> bool:
    """Return whether the daemon's view is gone that the loop device of a record is on."""
    return known.file is not None and loopdevices.is_dead(device, known.file, known.disk_sequence)


def bring_up(planned: Connection, uri: str, trust: Trust) -> Connection:
    """Set up the device of a record. Return the record with what tells the device from others. A
    loop device needs no `uri`. Raises NotFoundError, DeviceError, and then leaves nothing
    behind."""
    if planned.file is not None:
        made = loopdevices.bring_up(planned.file, sector_bytes(planned))
        try:
            return replace(planned, device=made, disk_sequence=loopdevices.disk_sequence(made))
        except BaseException:
            loopdevices.take_down(made)
            raise
    pid = kernelnbd.bring_up(planned.device, uri, trust, sector_bytes(planned))
    return replace(planned, pid=pid)


def sector_bytes(known: Connection) -> int:
    """Return the size of the logical sectors that a device has, or must have again."""
    if known.sector_bytes is not None:
        return known.sector_bytes
    return kernelnbd.OLD_SECTOR_BYTES if known.file is None else loopdevices.SECTOR_BYTES


def grow(known: Connection, device: str, size: int) -> bool:
    """Give a device the size in bytes that its volume has. Return False if it already has it.
    Raises DeviceError."""
    if blockdevices.size_bytes(device) == size:
        return False
    (kernelnbd if known.file is None else loopdevices).set_size(device, size)
    return True


def take_down(known: Connection) -> None:
    """End a device, used or not."""
    device = find_device(known)
    if device is not None:
        (kernelnbd if known.file is None else loopdevices).take_down(device)


def end_device(known: Connection, *, used: bool = False, lossy: bool = False) -> None:
    """End a device and wait until it has gone. Raises InUseError, unless it may be `used`;
    DeviceError when it cannot be flushed, unless it may be `lossy`."""
    device = find_device(known)
    assert device is not None
    if used and known.file is None:
        # The kernel keeps what is left of it for those who use it, and sends nothing any more.
        kernelnbd.take_down(device)
        return
    # A loop device that is used would live on, and write to a volume that is not attached.
    with blockdevices.claimed(device) as descriptor:
        try:
            blockdevices.flush(device, descriptor)
        except DeviceError:
            if not lossy:
                raise
        take_down(known)
    (kernelnbd if known.file is None else loopdevices).wait_until_gone(device)
