"""Files that are no whole disk image: what `bock volume import` and `bock image import` say of
them, and what they take out of its wrapping."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import random
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bockd.diskimage import open_image
from bockd.errors import BockdError, DamagedError
from bockd.model import MIB

from .daemon import Daemon, Terminal
from .images import image_names, make_image, same, tool
from .webserver import website

CUT_FORMATS = ("qcow2", "vmdk", "vdi", "vhdx", "vpc")


def make_full(path: Path, image_format: str, *options: str) -> Path:
    """A 64 MiB image of 40 MiB of data, most of it at the end of the file."""
    tool("qemu-img", "create", "-f", image_format, *options, path, "64M")
    tool("qemu-io", "-f", image_format, "-c", "write -P 7 0 40M", path)
    return path


def cut(image: Path, length: int, name: str) -> Path:
    """A copy of an image that ends early."""
    shorter = image.parent / name
    shorter.write_bytes(image.read_bytes()[:length])
    return shorter


# -- whole or not --------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", CUT_FORMATS)
def test_image_cut_short_is_refused(daemon: Daemon, tmp_path: Path, image_format: str) -> None:
    whole = make_full(tmp_path / f"whole.{image_format}", image_format)
    short = cut(whole, 24 * MIB, f"short.{image_format}")
    before = daemon.names(), image_names(daemon)
    for kind in ("volume", "image"):
        told = daemon.refusal(kind, "import", short)
        assert str(short) in told
        assert "cut short" in told
        assert "get it again" in told
    assert (daemon.names(), image_names(daemon)) == before
    assert open_image(whole, None).size_bytes >= 64 * MIB


@pytest.mark.parametrize("image_format", [*CUT_FORMATS, "compressed", "stream"])
def test_no_cut_is_taken_for_the_whole(tmp_path: Path, image_format: str) -> None:
    """Wherever the file is cut, it is refused, or nothing that it held is missing."""
    chance = random.Random(12)
    plain = tmp_path / "plain.raw"
    plain.write_bytes(chance.randbytes(3 * MIB) + bytes(5 * MIB) + chance.randbytes(MIB))
    whole = tmp_path / "whole"
    options = {
        "compressed": ("-c", "-O", "qcow2"),
        "stream": ("-O", "vmdk", "-o", "subformat=streamOptimized"),
    }.get(image_format, ("-O", image_format))
    tool("qemu-img", "convert", "-f", "raw", *options, plain, whole)
    assert open_image(whole, None, "whole").size_bytes >= 9 * MIB
    length = whole.stat().st_size
    near_the_end = [length - 1, length - 512, length - 4096, length - 65536]
    for end in [*near_the_end, *(chance.randrange(1, length) for _ in range(12))]:
        short = cut(whole, end, "short")
        try:
            opened = open_image(short, None, "short")
        except BockdError:
            continue
        if opened.format == "raw":  # its very head is gone, and so is what names its format
            assert end < 4096
            continue
        out = tmp_path / "out"
        converted = subprocess.run(
            ["qemu-img", "convert", *opened.source, "-O", "raw", out], capture_output=True
        )
        kept = converted.returncode == 0 and out.read_bytes()[: 9 * MIB] == plain.read_bytes()
        assert kept or converted.returncode, f"{image_format} cut at {end} of {length}"


def test_qcow2_that_lost_a_table_is_refused(tmp_path: Path) -> None:
    """The cut is in a mapping table whose first half is empty, so nothing points behind the end."""
    image = tmp_path / "table.qcow2"
    tool("qemu-img", "create", "-f", "qcow2", image, "512M")
    tool("qemu-io", "-f", "qcow2", "-c", "write -P 7 400M 1M", image)
    with image.open("rb") as file:
        file.seek(40)
        (first,) = struct.unpack(">Q", file.read(8))
        file.seek(first)
        (second,) = struct.unpack(">Q", file.read(8))
    short = cut(image, (second & 0x00FF_FFFF_FFFF_FE00) + 8192, "short.qcow2")
    checked = subprocess.run(["qemu-img", "check", "-q", short], check=False, capture_output=True)
    assert checked.returncode == 0  # which is why it is not asked alone
    with pytest.raises(DamagedError, match="cut short"):
        open_image(short, None)


def test_images_as_programs_leave_them_are_whole(tmp_path: Path) -> None:
    odd = tmp_path / "odd.raw"
    odd.write_bytes(random.Random(1).randbytes(10_000_001))
    made = {name: tmp_path / f"{name}.qcow2" for name in ("odd", "packed", "metadata", "old", "s")}
    tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", odd, made["odd"])
    tool("qemu-img", "convert", "-f", "raw", "-c", "-O", "qcow2", odd, made["packed"])
    tool(
        "qemu-img", "create", "-f", "qcow2", "-o", "preallocation=metadata", made["metadata"], "1G"
    )
    tool("qemu-img", "create", "-f", "qcow2", "-o", "compat=0.10", made["old"], "1G")
    options = "cluster_size=512,refcount_bits=1"
    tool("qemu-img", "create", "-f", "qcow2", "-o", options, made["s"], "8M")
    for image in (made["old"], made["s"]):
        tool("qemu-io", "-f", "qcow2", "-c", "write -P 5 7M 100k", image)
    for image in made.values():
        assert open_image(image, None).format == "qcow2"


def test_image_that_was_left_open_is_taken(daemon: Daemon, tmp_path: Path) -> None:
    """A virtual machine was killed: the reference counts are out of date, the data is there."""
    image = tmp_path / "left-open.qcow2"
    tool("qemu-img", "create", "-f", "qcow2", "-o", "lazy_refcounts=on", image, "8M")
    commands = ["-c", "write -P 7 0 1M", "-c", "flush", "-c", "abort"]
    subprocess.run(["qemu-io", "-f", "qcow2", *commands, image], check=False, capture_output=True)
    assert (
        b'"dirty-flag": true'
        in subprocess.run(
            ["qemu-img", "info", "--output=json", image], check=True, capture_output=True
        ).stdout
    )
    volume = daemon.bock_json("volume", "import", image)
    same(image, "qcow2", volume["uri"])


def test_image_with_contradicting_tables_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    image = make_image(tmp_path / "twice.qcow2", "qcow2")
    with image.open("r+b") as file:
        file.seek(40)
        (first,) = struct.unpack(">Q", file.read(8))
        file.seek(first)
        (second,) = struct.unpack(">Q", file.read(8))
        place = second & 0x00FF_FFFF_FFFF_FE00
        file.seek(place + 8 * 48)
        entry = file.read(8)
        file.seek(place)
        file.write(entry)  # two places of the disk share a cluster
    told = daemon.refusal("volume", "import", image)
    assert "qemu-img check finds" in told
    assert "qemu-img convert -O qcow2" in told


def test_differencing_vhd_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    """QEMU would take it for a whole one, in which everything of the parent is zeros."""
    image = make_full(tmp_path / "child.vhd", "vpc")
    content = bytearray(image.read_bytes())
    for place in (0, len(content) - 512):
        footer = content[place : place + 512]
        footer[60:64] = struct.pack(">I", 4)
        footer[64:68] = bytes(4)
        footer[64:68] = struct.pack(">I", ~sum(footer) & 0xFFFF_FFFF)
        content[place : place + 512] = footer
    image.write_bytes(content)
    assert "the difference to another VHD" in daemon.refusal("volume", "import", image)


# -- what is no disk -------------------------------------------------------------------------------


def test_what_is_no_disk_is_refused(tmp_path: Path) -> None:
    noise = random.Random(3).randbytes(2 * MIB)
    for name, content, reason in [
        ("debian-12.qcow2", b"<!DOCTYPE html>\n<html><body>Log in</body></html>\n", "an HTML page"),
        ("login.img", b"<html>" + b" " * 506, "an HTML page"),
        ("error.img", b'<?xml version="1.0"?>' + b"<a></a> " * 200, "holds text"),
        ("empty.raw", b"", "is empty"),
        ("noise.vmdk", noise, "its name promises vmdk"),
        ("noise.xz", noise, "its name promises xz"),
        ("odd.img", noise[:-100], "no multiple of 512"),
        ("disk.zip", b"PK\x03\x04" + noise[4:], "a zip archive"),
        ("sparse.img", b"\x3a\xff\x26\xed" + noise[4:], "simg2img"),
        ("mac.img", noise[:-512] + b"koly" + bytes(508), "DMG"),
    ]:
        file = tmp_path / name
        file.write_bytes(content)
        with pytest.raises(BockdError) as refused:
            open_image(file, None)
        told = str(refused.value)
        assert reason in told
        assert told.startswith(f"{file}: ")
        assert "--format raw" in told or not content


def test_page_in_place_of_an_image_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    page = tmp_path / "debian-12.qcow2"
    page.write_text("<html><body>Log in</body></html>\n")
    before = daemon.names(), image_names(daemon)
    for kind in ("volume", "image"):
        told = daemon.refusal(kind, "import", page)
        assert "its name promises qcow2, but it holds an HTML page" in told
        assert "--format raw" in told
    assert (daemon.names(), image_names(daemon)) == before


def test_name_and_content_that_disagree_need_a_format(daemon: Daemon, tmp_path: Path) -> None:
    image = make_image(tmp_path / "which.raw", "qcow2")
    told = daemon.refusal("volume", "import", image)
    assert "--format qcow2, or --format raw" in told
    same(image, "qcow2", daemon.bock_json("volume", "import", image, "--format", "qcow2")["uri"])


def test_compressed_bytes_are_imported_as_they_are_with_format_raw(
    daemon: Daemon, tmp_path: Path
) -> None:
    packed = tmp_path / "insisted.gz"
    packed.write_bytes(gzip.compress(random.Random(4).randbytes(MIB)))
    volume = daemon.bock_json("volume", "import", packed, "--format", "raw", "--name", "as-it-is")
    length = packed.stat().st_size
    exported = tmp_path / "out.raw"
    daemon.bock("volume", "export", "as-it-is", exported)
    assert volume["size_bytes"] >= length
    assert exported.read_bytes()[:length] == packed.read_bytes()


# -- what has a disk in it -------------------------------------------------------------------------


def zstd(content: bytes) -> bytes:
    """Compressed by the program that people use."""
    return subprocess.run(["zstd", "-q"], input=content, capture_output=True, check=True).stdout


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "xz": lzma.compress,
    "bz2": bz2.compress,
    "zst": zstd,
}


@pytest.mark.parametrize("ending", PACKERS)
def test_compressed_image_is_unpacked(daemon: Daemon, tmp_path: Path, ending: str) -> None:
    pack = PACKERS[ending]
    image = make_image(tmp_path / f"inner-{ending}.qcow2", "qcow2")
    content = image.read_bytes()
    half = len(content) // 2
    packed = tmp_path / f"inner-{ending}.qcow2.{ending}"
    packed.write_bytes(pack(content[:half]) + pack(content[half:]))  # two members are one file
    volume = daemon.bock_json("volume", "import", packed)
    assert volume["name"] == f"inner-{ending}"
    same(image, "qcow2", volume["uri"])
    made = daemon.bock_json("image", "import", packed)
    assert (made["name"], made["disk_format"]) == (f"inner-{ending}", "qcow2")
    assert made["checksum"] == hashlib.sha256(packed.read_bytes()).hexdigest()
    assert made["file_bytes"] == packed.stat().st_size
    same(image, "qcow2", made["uri"])
    assert not daemon.bock_json("image", "import", packed)["imported"]
    damaged = bytearray(packed.read_bytes())
    damaged[len(damaged) // 2] ^= 0x10
    for broken in (damaged, packed.read_bytes()[:-20]):
        bad = tmp_path / f"broken.qcow2.{ending}"
        bad.write_bytes(broken)
        told = daemon.refusal("volume", "import", bad)
        assert "is damaged" in told or "is cut short" in told
        assert bad.name in told


def test_unpacking_is_shown_at_a_terminal(daemon: Daemon, tmp_path: Path) -> None:
    packed = tmp_path / "long.img.gz"
    packed.write_bytes(gzip.compress(random.Random(5).randbytes(4 * MIB)))
    importing = Terminal(daemon, "bock", "volume", "import", packed)
    assert importing.end() == 0, importing.seen
    assert "unpacking long.img.gz" in importing.seen


def test_what_unpacks_to_too_much_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    tool("mount", "-t", "tmpfs", "-o", "size=96m", "none", small)
    try:
        packed = tmp_path / "bomb.img.zst"
        packed.write_bytes(zstd(bytes(range(1, 256)) * (MIB // 255) * 200))
        assert packed.stat().st_size < MIB
        told = daemon.refusal("volume", "import", packed, TMPDIR=str(small))
        assert "TMPDIR" in told
        assert list(small.iterdir()) == []
    finally:
        tool("umount", small)
    assert "bomb" not in daemon.names()


def test_disk_of_an_ova_is_taken_out(daemon: Daemon, tmp_path: Path) -> None:
    disk = make_image(tmp_path / "machine-disk1.vmdk", "vmdk")
    other = make_image(tmp_path / "machine-disk2.vmdk", "vmdk")
    description = tmp_path / "machine.ovf"
    description.write_text("<Envelope/>")

    def archive(name: str, *members: Path) -> Path:
        with tarfile.open(tmp_path / name, "w") as made:
            for member in members:
                made.add(member, member.name)
        return tmp_path / name

    volume = daemon.bock_json("volume", "import", archive("machine.ova", description, disk))
    assert volume["name"] == "machine"
    same(disk, "vmdk", volume["uri"])
    told = daemon.refusal("volume", "import", archive("two.ova", description, disk, other))
    assert "machine-disk1.vmdk, machine-disk2.vmdk" in told
    assert "tar -xf" in told
    told = daemon.refusal("volume", "import", archive("none.ova", description))
    assert "without a disk" in told
    whole = (tmp_path / "machine.ova").read_bytes()
    for length in (len(whole) // 2, 1024):  # in the middle of the disk; between two members
        short = tmp_path / "short.ova"
        short.write_bytes(whole[:length])
        assert "cut short" in daemon.refusal("volume", "import", short)


@pytest.mark.parametrize("subformat", ["fixed", "dynamic"])
def test_vhd_is_read_as_one(daemon: Daemon, tmp_path: Path, subformat: str) -> None:
    """A size that no geometry has, under a name that promises nothing."""
    plain = make_image(tmp_path / "plain.raw", "raw")
    with plain.open("r+b") as file:
        file.seek(40 * MIB + 1024 - 512)
        file.write(b"the end" * 73 + b".")
    image = tmp_path / f"vhd-{subformat}.img"
    options = f"subformat={subformat},force_size=on"
    tool("qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", options, plain, image)
    with image.open("r+b") as file:  # of a program whose geometry QEMU believes
        for place in (0, -512) if subformat == "dynamic" else (-512,):
            file.seek(place, 0 if place == 0 else 2)
            footer = bytearray(file.read(512))
            footer[28:32] = b"vbox"
            footer[56:60] = struct.pack(">HBB", 963, 5, 17)  # as the specification computes it
            footer[64:68] = bytes(4)
            footer[64:68] = struct.pack(">I", ~sum(footer) & 0xFFFF_FFFF)
            file.seek(place, 0 if place == 0 else 2)
            file.write(footer)
    answer = daemon.bock_json("image", "import", image)
    assert answer["disk_format"] == "vhd"
    volume = daemon.bock_json("volume", "import", image)
    assert volume["size_bytes"] == 40 * MIB + 4096
    exported = tmp_path / "out.raw"
    daemon.bock("volume", "export", volume["name"], exported)
    assert exported.read_bytes()[: 40 * MIB + 1024] == plain.read_bytes()


def test_snapshots_that_are_dropped_are_named(daemon: Daemon, tmp_path: Path) -> None:
    image = make_image(tmp_path / "snapped.qcow2", "qcow2")
    for name in ("before-upgrade", "after"):
        tool("qemu-img", "snapshot", "-c", name, image)
    result = daemon.run("bock", "image", "import", image)
    assert result.status == 0
    assert "snapped.qcow2 are not imported" in result.err
    assert "before-upgrade, after" in result.err


# -- where it comes from ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["volume", "image"])
def test_an_image_from_standard_input_needs_a_name(
    daemon: Daemon, tmp_path: Path, kind: str
) -> None:
    image = make_image(tmp_path / "piped.qcow2", "qcow2")
    packed = tmp_path / "piped.gz"
    packed.write_bytes(gzip.compress(image.read_bytes() + kind.encode()))
    command = ["bock", kind, "import", "-", "--json"]
    with packed.open("rb") as file:
        ended = subprocess.run(command, stdin=file, capture_output=True, env=daemon.environment)
    assert ended.returncode == 2
    assert b"--name" in ended.stderr
    with packed.open("rb") as file:
        command += ["--name", f"piped-{kind}"]
        ended = subprocess.run(command, stdin=file, capture_output=True, env=daemon.environment)
    assert ended.returncode == 0, ended.stderr
    found = daemon.bock_json(kind, "show", f"piped-{kind}")
    same(image, "qcow2", found["uri"])


def test_answer_without_a_length(daemon: Daemon, tmp_path: Path) -> None:
    """Nobody can tell a file from its beginning; one in chunks has an end of its own."""
    image = make_full(tmp_path / "endless.raw", "raw")
    before = image_names(daemon)
    with website(image.read_bytes()[: 2 * MIB]) as site:
        for path, kind in (("endless", "image"), ("endless-cut", "volume")):
            told = daemon.refusal(kind, "import", f"{site.url}/{path}/x.raw")
            assert "does not say how long the file is" in told
        told = daemon.refusal("image", "import", f"{site.url}/chunked-cut/x.raw")
        assert "failed after" in told
        assert image_names(daemon) == before
        made = daemon.bock_json("image", "import", f"{site.url}/chunked/chunky.raw")
        assert made["checksum"] == hashlib.sha256(site.content).hexdigest()
        volume = daemon.bock_json("volume", "import", f"{site.url}/plain/from-afar.raw")
        assert volume["name"] == "from-afar"
