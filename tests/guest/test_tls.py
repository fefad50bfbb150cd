"""`bock connect` over TLS: HTTPS to the API, and nbd-client's own TLS below a kernel NBD device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.attach.tenant import Tenant
from tests.daemon.process import serving
from tests.tls.authority import Authority
from tests.tls.configured import configuration

from .booted import Booted
from .disk import Disk
from .host import guest_host
from .vm import Guest

FILES = {"OS_CACERT": "/ca.pem", "OS_CERT": "/cert.pem", "OS_KEY": "/key.pem"}


def put(guest: Guest, path: str, content: Path) -> None:
    """A small text file."""
    guest.run(f"cat > {path} <<'END'\n{content.read_text()}END")


def test_a_host_connects_over_tls(booted_host: Booted, tmp_path: Path) -> None:
    """Both frontends require TLS and client certificates. Without them the host is told what to
    set; with them it gets a device that holds a file system."""
    authority = Authority(tmp_path / "ca")
    client = authority.issue("guest1")
    config = configuration(
        tmp_path / "bockd.toml",
        authority.issue("server"),
        authority,
        nbd_clients="required",
        api="require",
        api_clients="optional",
    )
    # On all addresses: then an attachment's URI names the one that the guest has asked.
    listen = "0.0.0.0:0"
    with (
        serving(tmp_path / "data", nbd_listen=listen, api_listen=listen, config=config) as daemon,
        guest_host(booted_host, tmp_path / "console.log", daemon) as bare,
    ):
        tenant = Tenant(daemon, verify=str(authority.ca.certificate))
        volume = tenant.create("disk1")
        for path, file in zip(
            FILES.values(), (authority.ca.certificate, client.certificate, client.key), strict=True
        ):
            put(bare.guest, path, file)
        nameless = replace(bare, variables={"OS_CACERT": "/ca.pem"})
        print(nameless.refusal("connect", "disk1"))
        assert tenant.show(volume)["status"] == "available"

        host = replace(bare, variables=FILES)
        assert host.bock("connect", "disk1") == "/dev/nbd0"
        assert tenant.attachment(volume, "guest1")["bockd"]["connections"] == 4
        disk = Disk(bare.guest, "/dev/nbd0", "/mnt/0")
        disk.make_file_system()
        with disk.mounted():
            disk.write_file("data", 8)
            written = disk.checksums()
            bare.guest.run("echo 3 > /proc/sys/vm/drop_caches")
            assert disk.checksums() == written
        host.bock("disconnect", "disk1")
        assert tenant.show(volume)["status"] == "available"
        daemon.check()
