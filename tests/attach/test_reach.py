"""The way in: what an attachment's URIs reach, and that nothing else is reached over TCP."""

from __future__ import annotations

import random
import socket
import struct
from pathlib import Path
from urllib.parse import quote

import nbd
import pytest

from tests.attach.tenant import Attached, Tenant, connect, connected, is_refused
from tests.daemon.process import Bockd, serving
from tests.nbd.protocol import wire

MIB = 1 << 20


def test_an_image_goes_in_over_tcp_and_comes_out_of_the_unix_socket(
    daemon: Bockd, tenant: Tenant, tmp_path: Path
) -> None:
    volume = tenant.create()
    attached = tenant.attach(volume)
    assert attached.uri == f"nbd://127.0.0.1:{daemon.nbd_port}/{attached.export}"
    assert attached.unix_uri.startswith(f"nbd+unix:///{attached.export}?socket=")
    for uri in (attached.uri, attached.unix_uri):
        assert daemon.tool("nbdinfo", "--size", uri).strip() == str(1 << 30)
    image, copy = tmp_path / "image", tmp_path / "copy"
    image.write_bytes(random.Random(4).randbytes(8 * MIB) + bytes(1016 * MIB))
    daemon.tool("nbdcopy", image, attached.uri)
    daemon.tool("nbdcopy", attached.unix_uri, copy)
    assert copy.read_bytes() == image.read_bytes()
    daemon.tool("qemu-io", "-f", "raw", "-c", "write -P 7 0 64k", "-c", "flush", attached.uri)
    assert "verification failed" not in daemon.tool(
        "qemu-io", "-f", "raw", "-r", "-c", "read -P 7 0 64k", attached.unix_uri
    )


def test_a_server_may_have_several_connections(tenant: Tenant) -> None:
    volume = tenant.create()
    attached = tenant.attach(volume)
    with connected(attached.uri) as one, connected(attached.uri) as two:
        assert one.can_multi_conn()
        one.pwrite(b"one" * 1000, 0)
        assert two.pread(3000, 0) == b"one" * 1000
        assert tenant.attachment(volume)["bockd"]["connections"] == 2
        assert tenant.show(volume)["status"] == "in-use"


def test_over_tcp_nothing_else_is_reached(daemon: Bockd, tenant: Tenant) -> None:
    volume = tenant.create("disk1")
    other = tenant.create("disk2")
    daemon.bock("snapshot", "create", "disk1", "frozen")
    frontend = f"nbd://127.0.0.1:{daemon.nbd_port}"
    names = ["", "disk1", str(volume), "disk2", str(other), "snapshot/frozen", "x" * 32, "\u00fc"]
    for attached in (False, True):
        if attached:
            name = tenant.attach(volume).export
            names += [name[:-1], name + "x", name.swapcase(), f"/{name}", f" {name}"]
        for wrong in names:
            assert is_refused(f"{frontend}/{quote(wrong)}"), wrong
            assert _export_name_is_refused(daemon.nbd_port, wrong), wrong
        assert _listed(frontend) == []
    assert not is_refused(f"{frontend}/{name}")
    assert not is_refused(daemon.uri("disk1"))
    assert name not in daemon.log.read_text()


def _listed(uri: str) -> list[str]:
    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.connect_uri(uri)
    names: list[str] = []

    def note(name: str, _: str) -> int:
        names.append(name)
        return 0

    handle.opt_list(note)
    handle.opt_abort()
    return names


def _export_name_is_refused(port: int, name: str) -> bool:
    """By the old option that has no error reply: the connection ends."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        stream = sock.makefile("rb")
        assert len(stream.read(18)) == 18
        data = name.encode()
        sock.sendall(struct.pack(">I", 3) + wire.option(1, data))
        return stream.read() == b""


def test_a_daemon_without_tcp_says_so(tmp_path: Path) -> None:
    with serving(tmp_path / "data", api_listen="127.0.0.1:0") as daemon:
        tenant = Tenant(daemon)
        volume = tenant.create()
        extra = tenant.attach(volume)
        assert extra.uri is None
        with connected(extra.unix_uri) as client:
            assert client.get_size() == 1 << 30


def test_on_all_addresses_the_uri_names_the_one_that_was_asked(tmp_path: Path) -> None:
    listen = "0.0.0.0:0"
    with serving(tmp_path / "data", nbd_listen=listen, api_listen=listen) as daemon:
        daemon.announced = [line.replace("0.0.0.0", "localhost") for line in daemon.announced]
        tenant = Tenant(daemon)
        attached = tenant.attach(tenant.create())
        assert attached.uri == f"nbd://localhost:{daemon.nbd_port}/{attached.export}"
        with connected(attached.uri):
            pass


def test_the_old_name_is_dead_and_the_new_one_is_new(tenant: Tenant) -> None:
    volume = tenant.create()
    names: list[Attached] = []
    for server in ("web1", "web2", "web1"):
        attached = tenant.attach(volume, server)
        with connected(attached.uri) as client:
            client.pwrite(server.encode(), 0)
        assert all(is_refused(old.uri) and is_refused(old.unix_uri) for old in names)
        names.append(attached)
        tenant.detach(volume, server)
        assert is_refused(attached.uri)
        assert is_refused(attached.unix_uri)
    assert len({attached.export for attached in names}) == 3


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_attachments_outlive_the_daemon(daemon: Bockd, tenant: Tenant, how: str) -> None:
    volume = tenant.create()
    attached = tenant.attach(volume)
    client = connect(attached.unix_uri)
    client.pwrite(b"before", 0)
    if how == "restart":
        daemon.restart()
    else:
        daemon.kill()
        daemon.start()
    tenant = Tenant(daemon)
    assert tenant.show(volume)["status"] == "in-use"
    again = tenant.attachment(volume)["bockd"]
    assert (again["export"], again["connections"]) == (attached.export, 0)
    with connected(again["uri"]) as new:
        assert new.pread(6, 0) == b"before"
    tenant.detach(volume)
    assert is_refused(again["uri"])


def test_an_attached_volume_is_not_reverted_nor_deleted_while_nobody_is_connected(
    daemon: Bockd, tenant: Tenant
) -> None:
    volume = tenant.create("disk1")
    daemon.bock("snapshot", "create", "disk1", "frozen")
    attached = tenant.attach(volume)
    with connected(attached.uri) as client:
        client.pwrite(b"kept", 0)
    assert "is in-use" in daemon.refusal("snapshot", "revert", "frozen")
    assert "is in-use" in daemon.refusal("volume", "delete", "disk1")
    tenant.detach(volume)
    daemon.bock("snapshot", "revert", "frozen")
