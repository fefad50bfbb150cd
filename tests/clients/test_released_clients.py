"""Each client does with a volume what people do with it: the table is in releases.py."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.attach.tenant import Tenant
from tests.daemon.process import Bockd
from tests.guest.disk import attached
from tests.guest.initramfs import build_initramfs
from tests.guest.vm import boot
from tests.interop.images import MIB, same_bytes, write_sparse_image

from .releases import RELEASES, Programs, Release

pytestmark = pytest.mark.released_clients

SIZE_BYTES = 32 * MIB


def releases_of(client: str) -> pytest.MarkDecorator:
    """The lines of the table that are about a client."""
    found = [release for release in RELEASES if release.client == client]
    return pytest.mark.parametrize("release", found, ids=str)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Data and holes."""
    path = tmp_path / "image"
    write_sparse_image(path, SIZE_BYTES, seed=50)
    return path


def volume_for(daemon: Bockd, release: Release) -> str:
    """A new volume's name."""
    name = str(release)
    daemon.bock("volume", "create", name, "--size", str(SIZE_BYTES))
    return name


@releases_of("qemu")
def test_qemu(
    daemon: Bockd, release: Release, programs: Programs, image: Path, tmp_path: Path
) -> None:
    """Images in and out, a map, and writes of each kind, which qemu-io reads back."""
    uri = daemon.uri(volume_for(daemon, release))
    programs.run("qemu-img", "convert", "-n", "-W", "-f", "raw", "-O", "raw", image, uri)
    out = tmp_path / "out"
    programs.run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, out)
    assert same_bytes(image, out)
    compare = programs.run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, uri)
    assert "identical" in compare
    mapped = json.loads(programs.run("qemu-img", "map", "-f", "raw", "--output=json", uri))
    assert sum(part["length"] for part in mapped) == SIZE_BYTES
    assert {part["data"] for part in mapped} == {True, False}

    commands = [
        "write -P 1 0 512",
        "write -P 2 8k 64k",
        "write -f -P 3 96k 4k",
        f"write -P 4 1M {4 * MIB}",
        "aio_write -P 5 8M 64k",
        "aio_write -P 6 9M 64k",
        "aio_flush",
        "write -z 1M 1M",
        "write -z -u 2M 1M",
        "discard 3M 1M",
        "flush",
    ]
    checks = [
        "read -P 1 0 512",
        "read -P 2 8k 64k",
        "read -P 3 96k 4k",
        "read -P 0 1M 3M",
        "read -P 4 4M 1M",
        "read -P 5 8M 64k",
        "read -P 6 9M 64k",
    ]
    for cache in ("none", "writethrough"):
        arguments = [part for one in commands + checks for part in ("-c", one)]
        said = programs.run("qemu-io", "-f", "raw", "-t", cache, "-d", "unmap", uri, *arguments)
        assert "failed" not in said


@releases_of("libnbd")
def test_libnbd(
    daemon: Bockd, release: Release, programs: Programs, image: Path, tmp_path: Path
) -> None:
    """nbdcopy over several connections, and nbdinfo's view of the volume."""
    uri = daemon.uri(volume_for(daemon, release))
    programs.run("nbdcopy", "--flush", "--connections=4", image, uri)
    out = tmp_path / "out"
    programs.run("nbdcopy", "--connections=4", uri, out)
    assert same_bytes(image, out)
    # Where file(1) is missing, 1.14 has stray bytes for the content (docs/discoveries.md).
    info = json.loads(programs.run("nbdinfo", "--no-content", "--json", uri))
    (export,) = info["exports"]
    assert export["export-size"] == SIZE_BYTES
    assert export["can_multi_conn"]
    mapped = json.loads(programs.run("nbdinfo", "--map", "--json", uri))
    assert sum(part["length"] for part in mapped) == SIZE_BYTES
    assert {part["description"] for part in mapped} == {"data", "hole,zero"}


@releases_of("nbdkit")
def test_nbdkit(
    daemon: Bockd, release: Release, programs: Programs, image: Path, tmp_path: Path
) -> None:
    """Its nbd plugin, which is a client, below two of its filters."""
    name = volume_for(daemon, release)
    out = tmp_path / "out"
    copy = f'nbdcopy --flush {image} "$uri" && nbdcopy "$uri" {out}'
    programs.run(
        "nbdkit",
        "-U",
        "-",
        "--filter=cow",
        "--filter=readahead",
        "nbd",
        f"socket={daemon.nbd_socket}",
        f"export={name}",
        "--run",
        copy,
    )
    assert same_bytes(image, out)
    untouched = json.loads(programs.run("nbdinfo", "--map", "--json", daemon.uri(name)))
    assert {part["description"] for part in untouched} == {"hole,zero"}
    programs.run(
        "nbdkit", "-U", "-", "nbd", f"socket={daemon.nbd_socket}", f"export={name}", "--run", copy
    )
    assert same_bytes(image, out)
    programs.run("nbdcopy", daemon.uri(name), out)
    assert same_bytes(image, out)


@releases_of("nbd-client")
def test_nbd_client(daemon: Bockd, release: Release, programs: Programs, tmp_path: Path) -> None:
    """It makes a kernel device of the volume, in a guest, for a file system."""
    tenant = Tenant(daemon)
    export = tenant.attach(tenant.create(str(release)), "web1").export
    base = tmp_path / "base.cpio"
    build_initramfs(tmp_path / "base", base)
    initramfs = tmp_path / "initramfs.cpio"
    # The kernel unpacks archives that follow each other, and the last one to name a file has it.
    initramfs.write_bytes(base.read_bytes() + _of_another_release(programs, tmp_path / "over"))
    with (
        boot(initramfs, tmp_path / "console.log") as guest,
        attached(guest, daemon.nbd_port, export) as disk,
    ):
        assert release.version in guest.attempt("nbd-client -V").output
        disk.make_file_system()
        with disk.mounted():
            disk.write_file("data", 4)
            written = disk.checksums()
        disk.check_file_system()
        with disk.mounted(read_only=True):
            assert disk.checksums() == written


def _of_another_release(programs: Programs, over: Path) -> bytes:
    """An archive with another nbd-client and the libraries and the loader of its release, apart
    from the guest's own."""
    client = "/usr/sbin/nbd-client"
    home = over / "other"
    home.mkdir(parents=True)
    listing = programs.run("ldd", client)
    libraries = [word for word in listing.split() if word.startswith("/")]
    for path in (client, *libraries):
        source = programs.root / path.lstrip("/")
        (home / source.name).write_bytes(source.read_bytes())
        (home / source.name).chmod(0o755)
    (loader,) = (Path(library).name for library in libraries if "/ld-linux" in library)
    wrapper = over / "sbin" / "nbd-client"
    wrapper.parent.mkdir()
    wrapper.write_text(
        f'#!/bin/sh\nexec /other/{loader} --library-path /other /other/nbd-client "$@"\n'
    )
    wrapper.chmod(0o755)
    names = "\n".join(sorted(str(path.relative_to(over)) for path in over.rglob("*")))
    packed = subprocess.run(
        ["cpio", "--create", "--format=newc", "--owner=0:0", "--quiet"],
        cwd=over,
        input=names.encode(),
        stdout=subprocess.PIPE,
        check=True,
    )
    return packed.stdout
