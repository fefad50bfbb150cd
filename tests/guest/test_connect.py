"""`bock connect` in a machine with a real kernel NBD device, against the API over the network."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.attach.tenant import Tenant
from tests.daemon.process import serving

from .booted import Booted
from .disk import Disk
from .host import NAME, guest_host
from .vm import HOST_ADDRESS


def free_port() -> int:
    """For a daemon that is restarted: its clients look for it where it was."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def test_connected_used_disconnected_and_connected_again(
    booted_host: Booted, tmp_path: Path
) -> None:
    """The API shows each state, the device is not taken away while it is mounted, the data stays;
    what the daemon's restart has broken is brought back."""
    # On all addresses: then an attachment's URI names the one that the guest has asked.
    listen = f"0.0.0.0:{free_port()}"
    with (
        serving(
            tmp_path / "data", nbd_listen=listen, api_listen=f"127.0.0.1:{free_port()}"
        ) as daemon,
        guest_host(booted_host, tmp_path / "console.log", daemon) as host,
    ):
        tenant = Tenant(daemon)
        volume = tenant.create("disk1")

        assert host.bock("connect", "disk1") == "/dev/nbd0"
        shown = tenant.show(volume)
        assert (shown["status"], shown["attachments"][0]["serverId"]) == ("in-use", NAME)
        assert tenant.attachment(volume, NAME)["bockd"]["connections"] == 4
        assert int(host.guest.run("cat /sys/block/nbd0/size")) == 1 << 21
        assert host.guest.run("cat /sys/block/nbd0/queue/logical_block_size").strip() == "512"
        assert "is /dev/nbd0 already" in host.refusal("connect", "disk1")

        disk = Disk(host.guest, "/dev/nbd0", "/mnt/0")
        disk.make_file_system()
        with disk.mounted():
            disk.write_file("data", 8)
            written = disk.checksums()
            refusal = host.refusal("disconnect", "disk1")
            assert "/dev/nbd0 is mounted at /mnt/0" in refusal
            assert tenant.show(volume)["status"] == "in-use"
        assert host.connections()[0]["state"] == "connected"
        host.bock("disconnect", "disk1")
        assert tenant.show(volume)["status"] == "available"
        assert host.connections() == []
        assert host.guest.run("cat /sys/block/nbd0/size") == "0\n"

        # A wrong device, a second volume, the free device after a taken one.
        other = tenant.create("disk2")
        assert "not an NBD device" in host.refusal("connect", "disk2", "--device", "/dev/vda")
        assert tenant.show(other)["status"] == "available"
        assert host.bock("connect", "disk2") == "/dev/nbd0"
        assert host.bock("connect", "disk1") == "/dev/nbd1"
        again = Disk(host.guest, "/dev/nbd1", "/mnt/1")
        again.check_file_system()
        with again.mounted():
            assert again.checksums() == written
            # Grown in use: by the host itself, then by somebody elsewhere.
            host.bock("volume", "extend", "disk1", "--size", "2GiB")
            again.grow_file_system(2 << 30)
            daemon.bock("volume", "extend", "disk1", "--size", "3GiB")
            assert host.bock("connect", "--refresh") == "/dev/nbd1 has the size of volume 1 (disk1)"
            again.grow_file_system(3 << 30)
            assert again.checksums() == written
        again.check_file_system()

        # The kernel keeps a device whose connections are gone, and fails what it is asked.
        daemon.kill()
        daemon.start()
        host.guest.run("/sbin/nbd-client -d /dev/nbd0")
        assert host.guest.attempt("dd if=/dev/nbd1 of=/dev/null count=8 bs=4096").status != 0
        restored = host.bock("connect", "--restore").splitlines()
        assert restored == [
            f"volume {other} (disk2) is /dev/nbd0",
            f"volume {volume} (disk1) is /dev/nbd1",
        ]
        with again.mounted():
            assert again.checksums() == written
            # Cut off under a mounted file system: the API knows at once.
            host.bock("disconnect", "--force", "/dev/nbd1")
            assert tenant.show(volume)["status"] == "available"
        host.bock("disconnect", "disk2")
        assert host.connections() == []

        # By the Unix socket, as when the daemon is on this machine; with an odd name.
        host.relay("/tmp/n&b d.sock", daemon.nbd_port)
        uri = f"nbd+unix:///{tenant.attach(other, NAME).export}?socket=/tmp/n%26b%20d.sock"
        bring_up = f'kernelnbd.bring_up("/dev/nbd3", "{uri}", Trust())'
        host.python(
            f"from bockd.host import kernelnbd; from bockd.tls.trust import Trust; {bring_up}"
        )
        assert tenant.attachment(other, NAME)["bockd"]["connections"] == 4
        host.guest.run("dd if=/dev/zero of=/dev/nbd3 bs=4096 count=8 conv=fsync")
        host.guest.run("/sbin/nbd-client -d /dev/nbd3")
        # As an nbd-client does that was built without netlink.
        export = tenant.attachment(other, NAME)["bockd"]["export"]
        way = f"{HOST_ADDRESS} {daemon.nbd_port} /dev/nbd3 -N {export} -nonetlink"
        host.guest.run(f"/sbin/nbd-client {way}")
        tenant.extend(other, 2)
        host.python('from bockd.host import kernelnbd; kernelnbd.set_size("/dev/nbd3", 2 << 30)')
        host.guest.run("/sbin/nbd-client -d /dev/nbd3")
        tenant.detach(other, NAME)

        # Interrupted when nbd-client has made the device and bock does not know that yet.
        host.guest.run("mv /sbin/nbd-client /sbin/away")
        script = '#!/bin/sh\\n/sbin/away "$@"\\n[ "$1" = -d ] || kill -INT $PPID; sleep 1\\n'
        host.guest.run(f"printf '{script}' >/sbin/nbd-client; chmod 755 /sbin/nbd-client")
        assert host.attempt("connect", "disk1").status != 0
        assert tenant.show(volume)["status"] == "available"
        assert host.connections() == []
        assert host.guest.run("cat /sys/block/nbd0/size") == "0\n"
        daemon.check()


def test_what_fails_leaves_the_volume_as_it_was(booted_host: Booted, tmp_path: Path) -> None:
    """nbd-client does not reach the daemon, or is not there; or there is no way over TCP."""
    api = f"127.0.0.1:{free_port()}"
    with serving(tmp_path / "data", nbd_listen="127.0.0.1:0", api_listen=api) as daemon:
        tenant = Tenant(daemon)
        volume = tenant.create("disk1")
        with guest_host(booted_host, tmp_path / "console.log", daemon) as host:
            # The guest's own 127.0.0.1, where nobody listens.
            refusal = host.refusal("connect", "disk1")
            assert "nbd-client failed: " in refusal
            assert "Connection refused" in refusal
            assert tenant.show(volume)["status"] == "available"
            assert host.connections() == []
            host.guest.run("mv /sbin/nbd-client /sbin/away")
            assert "install the package nbd-client" in host.refusal("connect", "disk1")
            host.guest.run("mv /sbin/away /sbin/nbd-client")
            assert "needs the daemon on this machine" in host.refusal("connect", "--loop", "disk1")
            assert tenant.show(volume)["status"] == "available"
            daemon.stop()
            assert "nobody answers at http://10.0.2.2" in host.refusal("connect", "disk1")
