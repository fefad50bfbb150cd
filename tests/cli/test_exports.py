"""What goes out as it came in: the imported size, formats by name, standard output; and volumes of
images, through real NBD and the real qemu-img."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bockd.model import KIB, MIB

from .daemon import Daemon
from .images import make_image, same, tool

ODD_BYTES = 3_146_240
"""In whole sectors, and not in whole blocks."""


def odd_image(path: Path, length: int = ODD_BYTES) -> Path:
    """A raw image of this length, with data up to its end."""
    path.write_bytes(random.Random(length).randbytes(length))
    return path


def export(daemon: Daemon, name: str, image: Path, *options: str, kind: str = "volume") -> bytes:
    """What an export gives."""
    daemon.bock(kind, "export", name, image, *options)
    return image.read_bytes()


def virtual_size(image: Path, image_format: str) -> int:
    """What a guest would see of an image."""
    command = ["qemu-img", "info", "-f", image_format, "--output=json", str(image)]
    found = subprocess.run(command, check=True, capture_output=True).stdout
    return int(json.loads(found)["virtual-size"])


def shown(daemon: Daemon, name: str) -> Any:
    """A volume's record."""
    return daemon.bock_json("volume", "show", name)


def test_export_gives_the_imported_size_back(daemon: Daemon, tmp_path: Path) -> None:
    image = odd_image(tmp_path / "odd-size.img")
    content = image.read_bytes()
    made = daemon.bock_json("volume", "import", image)
    assert (made["size_bytes"], made["content_bytes"]) == (ODD_BYTES + 3584, ODD_BYTES)
    assert "imported size" in daemon.bock("volume", "show", "odd-size")
    assert export(daemon, "odd-size", tmp_path / "out.raw") == content
    assert export(daemon, "odd-size", tmp_path / "padded.raw", "--padded") == content + bytes(3584)
    daemon.bock("volume", "export", "odd-size", tmp_path / "out.qcow2")
    assert virtual_size(tmp_path / "out.qcow2", "qcow2") == ODD_BYTES
    tool("qemu-img", "compare", "-s", "-f", "raw", "-F", "qcow2", image, tmp_path / "out.qcow2")


def test_imported_size_follows_snapshots_and_clones(daemon: Daemon, tmp_path: Path) -> None:
    image = odd_image(tmp_path / "followed.img")
    content = image.read_bytes()
    size = daemon.bock_json("volume", "import", image)["size_bytes"]
    daemon.bock("snapshot", "create", "followed", "followed-then")
    assert export(daemon, "followed-then", tmp_path / "s.raw", kind="snapshot") == content
    clone = daemon.bock_json("volume", "create", "cloned", "--from-snapshot", "followed-then")
    assert clone["content_bytes"] == ODD_BYTES
    assert export(daemon, "cloned", tmp_path / "c.raw") == content
    larger = ["--from-snapshot", "followed-then", "--size", "4M"]
    clone = daemon.bock_json("volume", "create", "cloned-larger", *larger)
    assert clone["content_bytes"] == 4 * MIB
    grown = daemon.bock_json("volume", "extend", "followed", "--size", str(size + 4 * KIB))
    assert grown["content_bytes"] == size + 4 * KIB
    assert export(daemon, "followed", tmp_path / "e.raw") == content + bytes(3584 + 4 * KIB)
    daemon.bock("snapshot", "revert", "followed-then", "--yes")  # it keeps its new size
    assert shown(daemon, "followed")["content_bytes"] == size + 4 * KIB


def test_revert_to_the_same_size_keeps_the_imported_one(daemon: Daemon, tmp_path: Path) -> None:
    image = odd_image(tmp_path / "reverted.img")
    daemon.bock("volume", "import", image)
    daemon.bock("snapshot", "create", "reverted", "reverted-then")
    daemon.bock("snapshot", "revert", "reverted-then", "--yes")
    assert export(daemon, "reverted", tmp_path / "out.raw") == image.read_bytes()


def test_what_was_written_behind_the_imported_size_is_exported(
    daemon: Daemon, tmp_path: Path
) -> None:
    image = odd_image(tmp_path / "behind.img")
    volume = daemon.bock_json("volume", "import", image)
    tool("qemu-io", "-f", "raw", "-c", f"write -P 9 {ODD_BYTES + 1024} 512", volume["uri"])
    expected = image.read_bytes() + bytes(1024) + b"\t" * 512 + bytes(2048)
    assert export(daemon, "behind", tmp_path / "out.raw") == expected


@pytest.mark.parametrize("length", [1, 512, MIB - 1, MIB + 1])
def test_every_length_comes_back(daemon: Daemon, tmp_path: Path, length: int) -> None:
    image = odd_image(tmp_path / f"length-{length}.img", length)
    daemon.bock("volume", "import", image, "--format", "raw")
    assert export(daemon, f"length-{length}", tmp_path / "out") == image.read_bytes()


def test_sizes_that_do_not_fit_together_are_refused(daemon: Daemon) -> None:
    with daemon.storage() as storage:
        for size, content in ((2 * MIB, MIB), (2 * MIB, 2 * MIB + 1), (2 * MIB, -1), (MIB, 0)):
            bockd = {"size_bytes": size, "content_bytes": content}
            with pytest.raises(Exception, match="content_bytes"):
                storage.post("os-volumes", {"volume": {"display_name": "x", "bockd": bockd}})
    assert "x" not in daemon.names()


# -- formats and places ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "qemu_format"),
    [("vmdk", "vmdk"), ("vdi", "vdi"), ("vhdx", "vhdx"), ("vhd", "vpc"), ("img", "raw")],
)
def test_export_has_the_format_of_its_name(
    daemon: Daemon, tmp_path: Path, ending: str, qemu_format: str
) -> None:
    image = odd_image(tmp_path / f"named-{ending}.raw", 2 * MIB + 512)
    daemon.bock("volume", "import", image)
    out = tmp_path / "out" / f"n.{ending}"
    out.parent.mkdir()
    told = daemon.bock_json("volume", "export", f"named-{ending}", out)
    assert told["format"] == ("vhd" if ending == "vhd" else qemu_format)
    tool("qemu-img", "compare", "-f", "raw", "-F", qemu_format, image, out)
    assert virtual_size(out, qemu_format) == 2 * MIB + 512
    assert list(out.parent.iterdir()) == [out]
    if ending == "vmdk":  # it names itself, and not what it was called while it was written
        assert b'SPARSE "n.vmdk"' in out.read_bytes()
    back = daemon.bock_json("volume", "import", out, "--name", f"back-{ending}")
    assert back["content_bytes"] == 2 * MIB + 512


def test_export_under_an_unknown_ending_needs_a_format(daemon: Daemon, tmp_path: Path) -> None:
    image = odd_image(tmp_path / "unknown.img", MIB)
    daemon.bock("volume", "import", image)
    out = tmp_path / "unknown.backup"
    refused = daemon.run("bock", "volume", "export", "unknown", out)
    assert refused.status == 2
    assert "say --format" in refused.err
    assert not out.exists()
    assert export(daemon, "unknown", out, "--format", "raw") == image.read_bytes()


def test_export_to_standard_output(daemon: Daemon, tmp_path: Path) -> None:
    image = odd_image(tmp_path / "streamed.img")
    daemon.bock("volume", "import", image)
    command = ["bock", "volume", "export", "streamed", "-"]

    def streamed(*options: str) -> bytes:
        done = subprocess.run(
            [*command, *options],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=daemon.environment,
            check=True,
        )
        assert done.stderr == b""
        return done.stdout

    assert streamed() == image.read_bytes()
    packed = tmp_path / "packed.qcow2"
    packed.write_bytes(streamed("--format", "qcow2"))
    tool("qemu-img", "compare", "-f", "raw", "-F", "qcow2", image, packed)
    assert not (tmp_path / "-").exists()
    for closed in ("head -c 5", "true"):
        pipe = f"set -o pipefail; {' '.join(command)} | {closed} > /dev/null"
        ended = subprocess.run(
            ["bash", "-c", pipe], env=daemon.environment, capture_output=True, check=False
        )
        assert b"Traceback" not in ended.stderr
    piped = f"{' '.join(command)} | bock volume import - --name piped-on"
    subprocess.run(["bash", "-c", piped], env=daemon.environment, check=True, capture_output=True)
    assert export(daemon, "piped-on", tmp_path / "piped.raw") == image.read_bytes()


def test_export_to_standard_output_goes_piece_by_piece(daemon: Daemon, tmp_path: Path) -> None:
    """In windows that do not divide the length."""
    image = odd_image(tmp_path / "pieces.img")
    volume = daemon.bock_json("volume", "import", image)
    script = (
        "from bockd.cli import export; "
        "export.WINDOW_BYTES = 1 << 20; "
        f"export.write_out({volume['uri']!r}, {ODD_BYTES}, 'raw', 'x')"
    )
    done = daemon_python(daemon, script)
    assert done == image.read_bytes()


def daemon_python(daemon: Daemon, script: str) -> bytes:
    """What a script of ours writes to standard output."""
    return subprocess.run(
        ["python", "-c", script], env=daemon.environment, capture_output=True, check=True
    ).stdout


# -- volumes of images -----------------------------------------------------------------------------


def test_volume_of_an_image(daemon: Daemon, tmp_path: Path) -> None:
    file = make_image(tmp_path / "base-image.qcow2", "qcow2")
    tool("qemu-io", "-f", "qcow2", "-c", "write -P 77 20M 4k", file)
    image = daemon.bock_json("image", "import", file)
    for number, ref in enumerate(("base-image", image["id"])):
        volume = daemon.bock_json("volume", "create", f"of-image-{number}", "--image", ref)
        assert (volume["from_image"], volume["status"]) == (image["id"], "available")
        tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", file, volume["uri"])
    larger = daemon.bock_json("volume", "create", "lg", "--image", "base-image", "--size", "2G")
    assert larger["size_bytes"] == 2048 * MIB
    told = daemon.refusal("volume", "create", "no", "--image", "nothing")
    assert "bock image list" in told
    both = ["--image", "base-image", "--from-snapshot", "x"]
    assert daemon.run("bock", "volume", "create", "no", *both).status == 2
    assert "no" not in daemon.names()


def test_image_keeps_the_size_of_its_file(daemon: Daemon, tmp_path: Path) -> None:
    file = odd_image(tmp_path / "odd-image.img", ODD_BYTES + 512)
    image = daemon.bock_json("image", "import", file)
    assert (image["size_bytes"], image["content_bytes"]) == (ODD_BYTES + 3584, ODD_BYTES + 512)
    same(file, "raw", image["uri"])
