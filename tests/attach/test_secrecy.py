"""The name of an attachment's export is a secret: it is in no log, whatever is logged and whatever
goes wrong, and in no process's arguments or environment."""

from __future__ import annotations

import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import nbd
import pytest

from tests.attach.tenant import Tenant, connect, connected, is_refused
from tests.daemon.process import Bockd, serving
from tests.nbd.protocol import wire
from tests.vm.qemu import qemu


@pytest.fixture
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bockd]:
    """A daemon that logs all it can, with a VM registered."""
    room = tmp_path_factory.mktemp("talk")
    config = room / "bockd.toml"
    config.write_text('log_level = "debug"\n')
    listen = "127.0.0.1:0"
    with serving(
        room / "data", nbd_listen=listen, api_listen=listen, config=config, is_forked=False
    ) as daemon:
        daemon.expect_in_log("^DEBUG ")
        daemon.bock("server", "add", "vm1", "--kind", "vm", "--qmp", room / "vm1")
        yield daemon


def test_names_are_in_no_log_and_no_process(talkative: Bockd) -> None:
    """Attached, connected, misspelt, misused, cut off, plugged into a VM, killed, detached."""
    names = [plain(talkative), machine(talkative)]
    talkative.bock("volume", "create", "disk1", "--size", "1G")
    uri = talkative.bock("attachment", "create", "disk1", "web9")["unix_uri"]
    names.append(uri.removeprefix("nbd+unix:///").split("?")[0])
    assert_not_in_processes(names)
    talkative.bock("attachment", "delete", "disk1")
    talkative.stop()
    log = talkative.log.read_text()
    assert "DEBUG " in log
    assert [name for name in names if name in log] == []


def plain(daemon: Bockd) -> str:
    """A plain server's attachment, with all that may go wrong at its export."""
    tenant = Tenant(daemon)
    volume = tenant.create()
    attached = tenant.attach(volume)
    name = attached.export
    with connected(attached.uri) as one, connected(attached.unix_uri) as two:
        one.pwrite(b"data", 0)
        assert two.pread(4, 0) == b"data"
        one.set_strict_mode(0)
        with pytest.raises(nbd.Error):
            one.pread(4, 1 << 40)
        assert_not_in_processes([name])
    for wrong in (f"{attached.uri}x", f"{attached.unix_uri.replace(name, 'x' + name)}"):
        assert is_refused(wrong)
    break_off(daemon.nbd_port, name)
    daemon.kill()
    daemon.start()
    tenant = Tenant(daemon)
    lost = connect(tenant.attachment(volume)["bockd"]["uri"])
    tenant.detach(volume, force=True)
    with pytest.raises(nbd.Error):
        lost.pread(4, 0)
    assert is_refused(attached.unix_uri)
    return name


def machine(daemon: Bockd) -> str:
    """A VM's attachment: QEMU hears the name over QMP, and is dead when the disk shall go."""
    tenant = Tenant(daemon)
    volume = tenant.create()
    with qemu(daemon.data_dir.parent / "vm1") as process:
        name = tenant.attach(volume, "vm1").export
        assert tenant.attachment(volume, "vm1")["bockd"]["connections"] == 1
        assert_not_in_processes([name])
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert tenant.try_detach(volume, "vm1", force=True).status_code == 202
    return name


def break_off(port: int, name: str) -> None:
    """Say the name, and then what no client says: a request with no magic number."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        stream = sock.makefile("rb")
        assert len(stream.read(18)) == 18
        sock.sendall(struct.pack(">I", 3) + wire.option(1, name.encode()))
        assert len(stream.read(10)) == 10
        sock.sendall(name.encode())
        assert stream.read() == b""


def assert_not_in_processes(names: list[str]) -> None:
    """Of all that run: what `ps` shows of them, and what they were given."""
    seen = 0
    for process in Path("/proc").glob("[0-9]*"):
        for file in ("cmdline", "environ"):
            try:
                shown = (process / file).read_bytes()
            except OSError:  # it has ended
                continue
            seen += 1
            assert not any(name.encode() in shown for name in names), (process, file)
    assert seen > 0
