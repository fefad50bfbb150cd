"""Plugging disks into a real QEMU, served by our own NBD server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from bockd.drivers.memory.device import MemoryDevice
from bockd.errors import InUseError, UnavailableError
from bockd.vm import disks
from bockd.vm.disks import Disk
from bockd.vm.machines import Machines, Wanted
from bockd.vm.monitor import Monitor, NotRunningError, RefusedError
from bockd.vm.names import MAX_NAME_LENGTH, disk_name, disk_of, prefix, serial, spare_name
from tests.nbd.server.serving import FixedExports, in_trio, serving

from .qemu import qemu

MIB = 1 << 20
PREFIX = prefix("/nbd")
SIZES = {"one": 8 * MIB, "two": MIB} | dict.fromkeys(("gone", *map(str, range(6))), MIB)


@pytest.fixture
def exports() -> FixedExports:
    return FixedExports({name: MemoryDevice(SIZES[name]) for name in ("one", "two")})


class Vm:
    """A QEMU under test, and what it can be given."""

    def __init__(self, directory: Path) -> None:
        self.machines = Machines()
        self.nbd = directory / "nbd.sock"
        self.qmp = directory / "qmp.sock"
        self.socket = str(self.qmp)

    def disk(self, export: str, volume: int = 1) -> Disk:
        name = disk_name("/nbd", volume, export)
        return Disk(name, serial(volume), export, SIZES[export], str(self.nbd), 60)

    async def plug(self, disk: Disk) -> None:
        await self.machines.plug(self.socket, disk)

    async def reconcile(self, *wanted: Disk, busy: tuple[str, ...] = ()) -> Any:
        return await self.machines.reconcile(self.socket, PREFIX, lambda: Wanted(wanted, busy))

    async def present(self) -> set[str]:
        async def ask(monitor: Monitor) -> set[str]:
            return await disks.present(monitor, PREFIX)

        return await self.machines._converse(self.socket, ask)

    async def nodes(self) -> dict[str, int]:
        """The sizes of all block nodes, by name."""
        return {
            node["node-name"]: node["image"]["virtual-size"]
            for node in await self.query("query-named-block-nodes", flat=True)
        }

    async def node_of(self, disk: Disk) -> str:
        """The node that a device is on."""
        node: str = await self.query("qom-get", **disks._drive(disk))
        return node

    async def query(self, command: str, **arguments: object) -> Any:
        async def ask(monitor: Monitor) -> object:
            return await monitor.execute(command, arguments or None)

        return await self.machines._converse(self.socket, ask)


@pytest.fixture
def vm(tmp_path: Path) -> Vm:
    return Vm(tmp_path)


@in_trio
async def test_disks_are_plugged_in_once_under_names_of_their_own(
    vm: Vm, exports: FixedExports
) -> None:
    one, two = vm.disk("one", 1), vm.disk("two", 2)
    async with serving(exports, vm.nbd):
        with qemu(vm.qmp):
            for disk in (one, two, one):
                await vm.plug(disk)
            assert await vm.present() == {one.name, two.name}
            assert exports.open_holds == 2
            path = f"/machine/peripheral/{one.name}"
            assert await vm.query("qom-get", path=path, property="serial") == "bockd-1"
            nodes = await vm.nodes()
            assert (nodes[one.name], nodes[two.name]) == (8 * MIB, MIB)


@in_trio
async def test_half_a_disk_is_made_whole_and_taken_away_whole(
    vm: Vm, exports: FixedExports
) -> None:
    one = vm.disk("one")
    async with serving(exports, vm.nbd):
        with qemu(vm.qmp):
            await vm.query("blockdev-add", **disks._node(one, one.name))
            await vm.plug(one)
            listed = await vm.query("qom-list", path="/machine/peripheral")
            assert one.name in {entry["name"] for entry in listed}
        with qemu(vm.qmp):
            await vm.query("blockdev-add", **disks._node(one, one.name))
            await vm.machines.unplug(vm.socket, one.name)
            assert await vm.present() == set()
            await vm.machines.unplug(vm.socket, one.name)


@in_trio
async def test_a_disk_waits_until_the_state_of_a_saved_vm_is_read_in(
    vm: Vm, exports: FixedExports, tmp_path: Path
) -> None:
    one, state = vm.disk("one"), tmp_path / "state"
    async with serving(exports, vm.nbd):
        with qemu(vm.qmp):
            await vm.query("migrate", uri=f"exec:cat >{state}")
            while (await vm.query("query-migrate")).get("status") != "completed":
                await trio.sleep(0.05)
        with qemu(vm.qmp, "-incoming", f"exec:sleep 1; cat {state}"):
            assert (await vm.query("query-status"))["status"] == "inmigrate"
            await vm.plug(one)
            assert (await vm.query("query-status"))["status"] != "inmigrate"
            assert await vm.present() == {one.name}


@in_trio
async def test_a_state_that_does_not_come_is_not_waited_for(
    vm: Vm, exports: FixedExports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disks, "RESTORED_SECONDS", 0.2)
    async with serving(exports, vm.nbd):
        with qemu(vm.qmp, "-incoming", "defer"):
            with pytest.raises(UnavailableError, match="try again when it runs"):
                await vm.plug(vm.disk("one"))
            assert await vm.present() == set()
            assert exports.open_holds == 0


@in_trio
async def test_an_export_that_cannot_be_reached_leaves_nothing(
    vm: Vm, exports: FixedExports
) -> None:
    async with serving(exports, vm.nbd):
        with qemu(vm.qmp):
            with pytest.raises(RefusedError, match="QEMU: Requested export not available"):
                await vm.plug(vm.disk("gone"))
            with pytest.raises(RefusedError, match=r"nowhere\.sock.*No such file"):
                await vm.plug(replace(vm.disk("one"), nbd_socket="/nowhere.sock"))
            assert await vm.present() == set()
            assert vm.machines.unsettled == {vm.socket}


@in_trio
async def test_without_a_place_to_plug_in_the_reason_says_what_to_start_qemu_with(
    vm: Vm, exports: FixedExports
) -> None:
    one, two = vm.disk("one", 1), vm.disk("two", 2)
    async with serving(exports, vm.nbd):
        with qemu(vm.qmp, "-machine", "q35"):
            with pytest.raises(RefusedError, match=r"pcie\.0.*-device pcie-root-port,id=port1"):
                await vm.plug(one)
            assert await vm.present() == set()
        ports = [f"pcie-root-port,id=port{n},chassis={n}" for n in (1, 2)]
        with qemu(vm.qmp, "-machine", "q35", "-device", ports[0], "-device", ports[1]):
            await vm.plug(one)
            await vm.plug(two)
            with pytest.raises(RefusedError, match="none of its 2 PCI Express root ports"):
                await vm.plug(vm.disk("two", 3))
            assert await vm.present() == {one.name, two.name}


@in_trio
async def test_a_guest_that_does_not_let_go_keeps_its_disk(
    vm: Vm, exports: FixedExports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disks, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(disks, "UNPLUG_SECONDS", 0.1)
    monkeypatch.setattr(disks, "FORCED_UNPLUG_SECONDS", 0.2)
    one = vm.disk("one")
    async with serving(exports, vm.nbd):
        with qemu(vm.qmp):
            await vm.plug(one)
            for _ in range(2):  # the second finds the first still pending
                with pytest.raises(InUseError, match=r"within 0\.1 s: .*or detach by force"):
                    await vm.machines.unplug(vm.socket, one.name)
            with pytest.raises(InUseError, match=r"within 0\.2 s: bockd goes on trying"):
                await vm.machines.unplug(vm.socket, one.name, force=True)
            assert await vm.present() == {one.name}
            assert exports.open_holds == 1


@in_trio
async def test_a_vm_that_does_not_run_has_no_disks_and_gets_none(
    vm: Vm, exports: FixedExports
) -> None:
    one = vm.disk("one")
    with pytest.raises(NotRunningError, match="the VM is not running"):
        await vm.plug(one)
    async with serving(exports, vm.nbd):
        with qemu(vm.qmp):
            await vm.plug(one)
    # The socket's file is there still, and nobody behind it.
    assert vm.qmp.exists()
    with pytest.raises(NotRunningError, match="the VM is not running"):
        await vm.plug(one)
    await vm.machines.unplug(vm.socket, one.name)


@in_trio
async def test_reconciling_plugs_what_is_missing_and_leaves_what_is_not_ours(
    vm: Vm, exports: FixedExports
) -> None:
    one, two, gone = vm.disk("one", 1), vm.disk("two", 2), vm.disk("gone", 3)
    foreign = replace(vm.disk("two", 4), name="scratch")
    async with serving(exports, vm.nbd):
        with qemu(vm.qmp):
            await vm.plug(one)
            await vm.query("blockdev-add", **disks._node(foreign, foreign.name))
            left_over = replace(two, name=disk_name("/nbd", 2, "an earlier attachment"))
            at_work = replace(two, name=disk_name("/nbd", 5, "another"))
            for half in (left_over, at_work):
                await vm.query("blockdev-add", **disks._node(half, half.name))
            done = await vm.reconcile(one, two, gone, busy=(at_work.name,))
            assert (done.plugged, done.removed) == ((two.name,), (left_over.name,))
            assert len(done.troubles) == 1
            assert done.troubles[0].startswith("bockd-3: QEMU: ")
            assert await vm.present() == {one.name, two.name, at_work.name}
            assert "scratch" in await vm.nodes()


def grown(exports: FixedExports, disk: Disk, mib: int) -> Disk:
    """The disk that there shall be once its volume has that size."""
    exports.devices[disk.export] = MemoryDevice(mib * MIB)
    return replace(disk, size_bytes=mib * MIB)


@in_trio
async def test_a_disk_whose_volume_grows_moves_to_a_new_connection(
    vm: Vm, exports: FixedExports
) -> None:
    """Twice, so that both names of its node have been used; nothing is left over."""
    one, two = vm.disk("one", 1), vm.disk("two", 2)
    async with serving(exports, vm.nbd):
        with qemu(vm.qmp):
            await vm.machines.resize(vm.socket, one)
            assert await vm.nodes() == {}
            for disk in (one, two):
                await vm.plug(disk)
            for mib, node in ((16, spare_name(one.name)), (24, one.name), (24, one.name)):
                larger = grown(exports, one, mib)
                await vm.machines.resize(vm.socket, larger)
                assert await vm.nodes() == {node: mib * MIB, two.name: MIB}
                assert await vm.node_of(one) == node
                assert await vm.present() == {one.name, two.name}
                assert exports.open_holds == 2
    # It gets the right size when it starts.
    await vm.machines.resize(vm.socket, larger)


@in_trio
@pytest.mark.parametrize("last", ["node added", "device moved", "guest told"])
async def test_a_growth_that_was_interrupted_is_finished(
    vm: Vm, exports: FixedExports, last: str
) -> None:
    """Whichever step was the last; the guest is told in any case."""
    one = vm.disk("one")
    spare = spare_name(one.name)
    async with serving(exports, vm.nbd):
        with qemu(vm.qmp):
            await vm.plug(one)
            larger = grown(exports, one, 16)
            await vm.query("blockdev-add", **disks._node(one, spare))
            if last != "node added":
                await vm.query("qom-set", **disks._drive(one), value=spare)
            if last == "guest told":
                await vm.query("block_resize", **{"node-name": spare, "size": 16 * MIB})
            done = await vm.reconcile(larger)
            assert (done.plugged, done.removed, done.troubles) == ((), (), ())
            assert await vm.nodes() == {spare: 16 * MIB}
            assert await vm.node_of(one) == spare


@in_trio
async def test_a_volume_that_cannot_be_reached_anew_leaves_the_disk_as_it_was(
    vm: Vm, exports: FixedExports
) -> None:
    one = vm.disk("one")
    async with serving(exports, vm.nbd):
        with qemu(vm.qmp):
            await vm.plug(one)
            larger = replace(one, size_bytes=16 * MIB, nbd_socket="/nowhere.sock")
            with pytest.raises(RefusedError, match=r"nowhere\.sock.*No such file"):
                await vm.machines.resize(vm.socket, larger)
            assert await vm.nodes() == {one.name: 8 * MIB}
            assert vm.machines.unsettled == {vm.socket}


@in_trio
async def test_operations_on_one_vm_take_turns(vm: Vm) -> None:
    disks_of_many = {str(n): MemoryDevice(MIB) for n in range(6)}
    wanted = [vm.disk(name, int(name)) for name in disks_of_many]
    async with serving(FixedExports({**disks_of_many}), vm.nbd):
        with qemu(vm.qmp):
            async with trio.open_nursery() as nursery:
                for disk in wanted:
                    nursery.start_soon(vm.plug, disk)
            assert await vm.present() == {disk.name for disk in wanted}


def test_names_fit_and_differ_by_daemon_volume_and_attachment() -> None:
    names = {
        disk_name(socket, volume, export)
        for socket in ("/a/nbd.sock", "/b/nbd.sock")
        for volume in (1, 10**11 - 1)
        for export in ("x", "y")
    }
    assert len(names) == 8
    assert max(map(len, names)) == MAX_NAME_LENGTH
    spares = {spare_name(name) for name in names}
    assert (len(names | spares), max(map(len, spares))) == (16, MAX_NAME_LENGTH)
    assert {disk_of(name) for name in names | spares} == names
    assert all(name.startswith((prefix("/a/nbd.sock"), prefix("/b/nbd.sock"))) for name in names)
