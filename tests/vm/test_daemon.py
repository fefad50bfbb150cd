"""The daemon and VMs that misbehave: QEMUs without a guest, volumes attached by the API."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from bockd.vm import disks
from bockd.vm.names import disk_name

from ..attach.tenant import Tenant
from ..daemon.process import Bockd, serving
from .qemu import converse, qemu

WAIT_SECONDS = 60.0


@pytest.fixture
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its path is short enough for sockets."""
    return tmp_path_factory.mktemp("vms")


@pytest.fixture
def daemon(room: Path) -> Iterator[Bockd]:
    with serving(room / "data", api_listen="127.0.0.1:0") as running:
        for name in ("vm1", "vm2", "vm3", "vm4"):
            running.bock("server", "add", name, "--kind", "vm", "--qmp", room / name)
        yield running


def names_in(socket: Path) -> set[str]:
    """All that the VM has of any daemon."""
    return converse(socket, lambda monitor: disks.present(monitor, "bockd-"))


def size_of_disk(socket: Path) -> int:
    """Of the only node that the VM has."""
    (size,) = converse(socket, disks._nodes).values()
    return size


def add_node(socket: Path, name: str) -> None:
    """Half a disk."""
    node = {"driver": "null-co", "node-name": name}
    converse(socket, lambda monitor: monitor.execute("blockdev-add", node))


def wait_until(holds: Callable[[], bool]) -> None:
    """Ask again and again: the daemon's watch looks every two seconds, and tells nobody."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < deadline


def test_after_a_restart_a_vm_has_its_volumes_and_nothing_left_over(
    daemon: Bockd, room: Path
) -> None:
    """The VM's restart, the daemon's, and both at once."""
    tenant = Tenant(daemon)
    volume = tenant.create()
    socket = room / "vm1"
    with qemu(socket):
        export = tenant.attach(volume, "vm1").export
        name = disk_name(str(daemon.nbd_socket), volume, export)
        assert names_in(socket) == {name}
    with qemu(socket):
        wait_until(lambda: names_in(socket) == {name})
        # What a daemon that dies between plugging and recording leaves, and another daemon's.
        left_over = disk_name(str(daemon.nbd_socket), volume, "never recorded")
        foreign = disk_name("/elsewhere/nbd.sock", volume, export)
        for other in (left_over, foreign):
            add_node(socket, other)
        daemon.kill()
        daemon.start()
        wait_until(lambda: names_in(socket) == {name, foreign})
    daemon.kill()
    with qemu(socket):
        daemon.start()
        wait_until(lambda: names_in(socket) == {name})
        assert Tenant(daemon).attachment(volume, "vm1")["bockd"]["connections"] == 1
    Tenant(daemon).detach(volume, "vm1")


def test_a_vm_that_hangs_is_given_up_and_holds_up_no_other(daemon: Bockd, room: Path) -> None:
    """Its attach ends `available`, its detach `in-use`, a volume that it has grows, each with the
    reason."""
    tenant = Tenant(daemon)
    # What was under way when a VM stopped waits longer.
    daemon.expect_in_log("no greeting within 10 s|did not answer [a-z-]+ within 30 s")
    attached, available, other, growing = (tenant.create() for _ in range(4))
    answers: dict[str, httpx.Response] = {}

    def ask(name: str, request: Callable[[], httpx.Response]) -> threading.Thread:
        def run() -> None:
            answers[name] = request()

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    with (
        qemu(room / "vm1") as one,
        qemu(room / "vm2") as two,
        qemu(room / "vm3"),
        qemu(room / "vm4") as four,
    ):
        tenant.attach(attached, "vm1")
        tenant.attach(growing, "vm4")
        for hanging in (one, two, four):
            hanging.send_signal(signal.SIGSTOP)
        asking = [
            ask("detach", lambda: tenant.try_detach(attached, "vm1")),
            ask("attach", lambda: tenant.try_attach(available, "vm2")),
            ask("extend", lambda: tenant.try_extend(growing, 2)),
        ]
        tenant.attach(other, "vm3")
        assert answers == {}
        for thread in asking:
            thread.join()
        for verb, volume, status in (
            ("detach", attached, "in-use"),
            ("attach", available, "available"),
        ):
            assert answers[verb].status_code == 503
            assert "no greeting within 10 s" in answers[verb].text
            shown = tenant.show(volume)
            assert shown["status"] == status
            assert "no greeting within 10 s" in shown["bockd"]["last_error"]

        assert answers["extend"].status_code == 202
        shown = tenant.show(growing)
        assert (shown["size"], shown["status"]) == (2, "in-use")
        assert "was not enlarged at once: QEMU sent no" in shown["bockd"]["last_error"]

        for hanging in (one, two, four):
            hanging.send_signal(signal.SIGCONT)
        assert len(names_in(room / "vm1")) == 1
        assert names_in(room / "vm2") == set()
        tenant.attach(available, "vm2")
        daemon.restart()
        wait_until(lambda: size_of_disk(room / "vm4") == 2 << 30)
        tenant = Tenant(daemon)
    for volume, server in (
        (attached, "vm1"),
        (available, "vm2"),
        (other, "vm3"),
        (growing, "vm4"),
    ):
        tenant.detach(volume, server)
        assert tenant.show(volume)["status"] == "available"


def test_what_the_vm_has_no_room_for_is_refused_with_the_way_out(daemon: Bockd, room: Path) -> None:
    tenant = Tenant(daemon)
    volume = tenant.create()
    with qemu(room / "vm1", "-machine", "q35"):
        answer = tenant.try_attach(volume, "vm1")
        assert answer.status_code == 409
        assert "-device pcie-root-port,id=port1,chassis=1" in answer.text
        shown = tenant.show(volume)
        assert (shown["status"], shown["attachments"]) == ("available", [{}])
        assert "pcie-root-port" in shown["bockd"]["last_error"]
