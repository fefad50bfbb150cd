"""An attachment as a disk of a machine with a real kernel: the way in by its URI, and its end."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.attach.tenant import Tenant
from tests.daemon.process import serving

from .disk import attached
from .vm import Guest, GuestError


def test_attached_detached_and_attached_again(guest: Guest, tmp_path: Path) -> None:
    listen = "127.0.0.1:0"
    with serving(tmp_path / "data", nbd_listen=listen, api_listen=listen) as daemon:
        tenant = Tenant(daemon)
        volume = tenant.create("disk1")
        parts = urlsplit(tenant.attach(volume, "guest").uri)
        assert parts.port is not None
        port, name = parts.port, parts.path[1:]
        with attached(guest, port, name) as disk:
            disk.make_file_system()
            with disk.mounted():
                disk.write_file("data", 8)
                written = disk.checksums()
        tenant.detach(volume, "guest")
        with pytest.raises(GuestError), attached(guest, port, name):
            pass
        again = urlsplit(tenant.attach(volume, "guest").uri).path[1:]
        with attached(guest, port, again, number=1) as disk:
            disk.check_file_system()
            with disk.mounted(read_only=True):
                assert disk.checksums() == written
        # Cut off while its device is there: the kernel gets errors, and nothing more lands.
        guest.run(f"/sbin/nbd-client 10.0.2.2 {port} /dev/nbd2 -N '{again}' -b 4096")
        tenant.detach(volume, "guest", force=True)
        with pytest.raises(GuestError):
            guest.run("dd if=/dev/zero of=/dev/nbd2 bs=1M count=1 oflag=direct")
        last = urlsplit(tenant.attach(volume, "guest").uri).path[1:]
        with attached(guest, port, last, number=3) as disk:
            disk.check_file_system()
