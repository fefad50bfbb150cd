"""A volume as a disk of one VM: what QEMU is told to plug it in, and to take it out again.

A disk is two things in QEMU that carry one name: a *block node*, QEMU's NBD connection to the
volume's export, and a virtio-blk *device*, what the guest sees. The name follows from the
attachment (`bockd.vm.names`), so both can be found again whatever happened since: every operation
looks first and does what is missing, and may be repeated.

QEMU's NBD client keeps the size that it was told when it connected. A disk whose volume has grown
therefore gets a second node, which connects anew, and the device is moved over to it (`_grow`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from qemu.qmp.events import EventListener

from bockd.errors import InUseError, UnavailableError
from bockd.vm.monitor import Monitor, RefusedError
from bockd.vm.names import disk_of, spare_name

T = TypeVar("T")

UNPLUG_SECONDS = 30.0
"""For the guest to let a device go. Linux takes well below a second, an emulated one two or three;
a guest without an operating system that listens never does."""

FORCED_UNPLUG_SECONDS = 5.0
"""For a guest whose consent does not matter: one that works lets go by then, and from another one
the watch takes the disk later (bockd.vm.watch)."""

RESTORED_SECONDS = 20.0
"""For the state of a VM that was saved, or comes from another host, to be read in. Longer ones are
tried again by the watch."""

_LOOK_RESTORED_SECONDS = 0.05

LOOK_SECONDS = 1.0
"""How long to wait for the event before looking whether the device is there still: the event is a
hint, the list of devices is the truth."""

PHYSICAL_BLOCK_BYTES = 4096
"""What the pool's map is made of: a guest's file system then writes whole blocks. The logical size
stays at 512, which boot loaders and partition tables expect."""

_START_OR_FORCE = (
    "it may still be starting, or does not support hot-unplug; try again, or detach by force"
)
_LATER = "bockd goes on trying to take it out"

# A conventional PCI bus takes devices at any time, a PCI Express one only at ports made for it.
_ROOT_PORTS = ("pcie-root-port", "ioh3420", "xio3130-downstream")


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk that a VM should have."""

    name: str
    """Of the block node and of the device; at most 31 characters."""
    serial: str
    """What the guest reads in /sys/block/vdX/serial; at most 20 characters."""
    export: str
    size_bytes: int
    """The volume's."""
    nbd_socket: str
    """The daemon's Unix socket, as QEMU finds it."""
    reconnect_seconds: int
    """How long QEMU holds the guest's requests while the daemon is away, before it fails them."""


class _Child(msgspec.Struct):
    """An entry of qom-list."""

    name: str
    type: str


class _Image(msgspec.Struct, rename="kebab"):
    """What a node holds."""

    virtual_size: int


class _Node(msgspec.Struct, rename="kebab"):
    """An entry of query-named-block-nodes."""

    node_name: str
    image: _Image


async def plug(monitor: Monitor, disk: Disk) -> bool:
    """Make the guest see the disk, in its size; False if it had the disk already.

    Raises RefusedError with QEMU's reason (nothing is left behind then), NotRunningError,
    UnavailableError.
    """
    devices = await _devices(monitor)
    if disk.name in devices:
        await _grow(monitor, disk)
        return False
    await _wait_until_restored(monitor)
    await _remove_nodes(monitor, disk.name)
    await monitor.execute("blockdev-add", _node(disk, disk.name))
    try:
        await _add_device(monitor, disk, devices)
    except RefusedError:
        with suppress(RefusedError):
            await _remove_node(monitor, disk.name)
        raise
    return True


async def _wait_until_restored(monitor: Monitor) -> None:
    """Return when QEMU reads in no saved state any more. The guest would not notice a device that
    is plugged in before: the state has what its firmware was told of devices."""
    until = time.monotonic() + RESTORED_SECONDS
    while True:
        found = _decode(await monitor.execute("query-status"), dict[str, Any])
        if found["status"] != "inmigrate":
            return
        if time.monotonic() > until:
            raise UnavailableError(
                "QEMU still waits for the state of a VM that was saved, or that another host has; "
                "the guest would not notice a disk before that; try again when it runs"
            )
        await asyncio.sleep(_LOOK_RESTORED_SECONDS)


async def unplug(monitor: Monitor, name: str, *, force: bool = False) -> None:
    """Take the disk away from the guest and close QEMU's connection; return at once if it is gone.
    `force`: the disk is dead already, so the guest is waited for only a moment.

    Raises InUseError when the guest does not release the disk in time (it may do so later; then the
    disk is gone and this can be repeated), RefusedError, NotRunningError, UnavailableError.
    """
    gone = monitor.listen("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR")
    if name in await _devices(monitor):
        # QEMU refuses when it waits for the guest already; then that is what to wait for.
        with suppress(RefusedError):
            await monitor.execute("device_del", {"id": name})
        await _wait_until_gone(monitor, gone, name, force=force)
    await _remove_nodes(monitor, name)


async def resize(monitor: Monitor, disk: Disk) -> None:
    """Make a disk that the guest has as large as its volume; return at once if the guest does not
    have the disk.

    Raises RefusedError, NotRunningError, UnavailableError. The disk has its old size then, or its
    new one, and works; this can be repeated.
    """
    if disk.name in await _devices(monitor):
        await _grow(monitor, disk)


async def present(monitor: Monitor, prefix: str) -> set[str]:
    """Return the names of the disks, complete or half plugged, that begin with `prefix`."""
    names = {*await _devices(monitor), *map(disk_of, await _nodes(monitor))}
    return {name for name in names if name.startswith(prefix)}


async def _grow(monitor: Monitor, disk: Disk) -> None:
    """Move the device to a node that knows the volume's size, unless its own does.

    The old node goes last: while there are two, the guest may not have been told.
    """
    nodes = await _nodes(monitor)
    current = await _node_of(monitor, disk)
    spare = disk.name if current != disk.name else spare_name(disk.name)
    if nodes[current] >= disk.size_bytes and spare not in nodes:
        return
    if nodes[current] < disk.size_bytes:
        if spare in nodes:
            await _remove_node(monitor, spare)
        await monitor.execute("blockdev-add", _node(disk, spare))
        try:
            await monitor.execute("qom-set", {**_drive(disk), "value": spare})
        except RefusedError as error:
            await _remove_node(monitor, spare)
            raise RefusedError(
                f"{error}. This QEMU cannot enlarge a disk in a running VM (7.2 and newer can): "
                "detach the volume and attach it again"
            ) from error
        nodes = await _nodes(monitor)
        current, spare = spare, current
    # To the size that the node has: QEMU tells the guest then.
    await monitor.execute("block_resize", {"node-name": current, "size": nodes[current]})
    await _remove_node(monitor, spare)


def _drive(disk: Disk) -> dict[str, object]:
    """Where QEMU keeps which node a device is on. It lets the node be changed while the guest uses
    the device: what is under way is finished on the old one first."""
    return {"path": f"/machine/peripheral/{disk.name}", "property": "drive"}


async def _node_of(monitor: Monitor, disk: Disk) -> str:
    return _decode(await monitor.execute("qom-get", _drive(disk)), str)


async def _remove_nodes(monitor: Monitor, name: str) -> None:
    """Close all connections of a disk that has no device."""
    for node in sorted({name, spare_name(name)} & (await _nodes(monitor)).keys()):
        await _remove_node(monitor, node)


async def _remove_node(monitor: Monitor, node: str) -> None:
    await monitor.execute("blockdev-del", {"node-name": node})


def _node(disk: Disk, name: str) -> dict[str, object]:
    return {
        "driver": "nbd",
        "node-name": name,
        "server": {"type": "unix", "path": disk.nbd_socket},
        "export": disk.export,
        "reconnect-delay": disk.reconnect_seconds,
        # What the guest trims is given back.
        "discard": "unmap",
    }


async def _add_device(monitor: Monitor, disk: Disk, devices: Mapping[str, str]) -> None:
    """Find a place on the VM's PCI buses; RefusedError when there is none."""
    device: dict[str, object] = {
        "driver": "virtio-blk-pci",
        "id": disk.name,
        "drive": disk.name,
        "serial": disk.serial,
        "physical_block_size": PHYSICAL_BLOCK_BYTES,
    }
    try:
        await monitor.execute("device_add", device)
    except RefusedError as error:
        first = error
    else:
        return
    ports = [name for name, kind in devices.items() if kind.startswith(_ROOT_PORTS)]
    for port in ports:
        # Whether a port is free only QEMU knows: it refuses a second device at the address 0, the
        # only one that a guest looks at behind a port.
        with suppress(RefusedError):
            await monitor.execute("device_add", {**device, "bus": port, "addr": "0"})
            return
    raise RefusedError(
        f"{first}. The VM has no free place to plug a disk in: "
        f"none on its first PCI bus, and none of its {len(ports)} PCI Express root ports with an "
        "id is free. Start QEMU with -machine pc, or with one root port for each volume: "
        "-device pcie-root-port,id=port1,chassis=1"
    ) from first


async def _wait_until_gone(
    monitor: Monitor, gone: EventListener, name: str, *, force: bool
) -> None:
    limit = FORCED_UNPLUG_SECONDS if force else UNPLUG_SECONDS
    deadline = time.monotonic() + limit
    while name in await _devices(monitor):
        if time.monotonic() >= deadline:
            raise InUseError(
                f"the guest did not let go of the disk within {limit:g} s: "
                + (_LATER if force else _START_OR_FORCE)
            )
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                await _event_about(gone, name)


async def _event_about(gone: EventListener, name: str) -> None:
    """Return when the device is gone; InUseError when the guest says that it will not be."""
    while True:
        event = await gone.get()
        data = event.get("data")
        about = data.get("device") if isinstance(data, dict) else None
        if about == name and event["event"] == "DEVICE_DELETED":
            return
        if about == name:
            raise InUseError("the guest refuses to let go of the disk; see its kernel's log")


async def _devices(monitor: Monitor) -> dict[str, str]:
    """The type of each device that was given an id."""
    listed = await monitor.execute("qom-list", {"path": "/machine/peripheral"})
    children = _decode(listed, list[_Child])
    return {
        child.name: child.type.removeprefix("child<").removesuffix(">")
        for child in children
        if child.type.startswith("child<")
    }


async def _nodes(monitor: Monitor) -> dict[str, int]:
    """The size in bytes of each block node, by name."""
    listed = await monitor.execute("query-named-block-nodes", {"flat": True})
    return {node.node_name: node.image.virtual_size for node in _decode(listed, list[_Node])}


def _decode(reply: object, kind: type[T]) -> T:
    """A reply as what QEMU's interface documents; UnavailableError for anything else."""
    try:
        return msgspec.convert(reply, kind)
    except msgspec.ValidationError as error:
        raise UnavailableError(f"QEMU's answer is not what its interface says: {error}") from error
