"""The device of a connection that is recorded, whichever kind it is: where it is, and its end."""

from __future__ import annotations

from bockd.errors import DeviceError
from bockd.host import blockdevices, kernelnbd, loopdevices
from bockd.host.records import Connection, current_boot


def find_device(known: Connection) -> str | None:
    """The device of a record, if it is there and still this one's."""
    if known.file is not None:
        same_boot = known.boot == current_boot()
        if known.device and same_boot and loopdevices.is_on(known.device, known.file):
            return known.device
        return loopdevices.find_device(known.file)
    pid = kernelnbd.find_pid(known.device)
    ours = pid is not None and known.boot == current_boot() and known.pid in (None, pid)
    return known.device if ours else None


def take_down(known: Connection) -> None:
    """End a device, used or not."""
    device = find_device(known)
    if device is not None:
        (kernelnbd if known.file is None else loopdevices).take_down(device)


def end_device(known: Connection, *, used: bool = False, lossy: bool = False) -> None:
    """End a device and wait until it has gone. InUseError, unless it may be `used`; DeviceError
    when it cannot be flushed, unless it may be `lossy`."""
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
