"""`bock volume import` and the exports, through real NBD and the real qemu-img."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from bockd.model import KIB, MIB
from tests.daemon import driver

from .daemon import Daemon, Terminal
from .images import make_image, path_with_endless_convert, same, tool


def allocated_bytes(daemon: Daemon, volume: str) -> int:
    """What a volume stores."""
    space = daemon.bock_json("volume", "show", volume)["space"]
    return int(space["exclusive_bytes"] + space["shared_bytes"])


@pytest.mark.parametrize("image_format", ["raw", "qcow2", "vmdk", "vdi", "vhdx"])
def test_a_volume_is_imported_from_each_format(
    daemon: Daemon, tmp_path: Path, image_format: str
) -> None:
    image = make_image(tmp_path / f"disk-{image_format}.img", image_format)
    volume = daemon.bock_json("volume", "import", image)
    assert volume["name"] == f"disk-{image_format}"
    assert volume["size_bytes"] == 40 * MIB
    same(image, image_format, volume["uri"])
    # Written in clusters of up to 1 MiB, and empty areas not at all. Ceph counts objects of 4 MiB.
    most = 4 * MIB if driver.features().in_directory else 8 * MIB
    assert MIB <= allocated_bytes(daemon, volume["name"]) <= most


@pytest.mark.parametrize(("size", "rounded"), [(1, MIB), (MIB + 1, MIB + 4 * KIB), (MIB, MIB)])
def test_import_rounds_the_size_up(daemon: Daemon, tmp_path: Path, size: int, rounded: int) -> None:
    image = tmp_path / f"odd{size}.raw"
    image.write_bytes(b"x" * size)
    volume = daemon.bock_json("volume", "import", image, "--format", "raw")
    assert volume["size_bytes"] == rounded
    exported = tmp_path / "out"
    daemon.bock("volume", "export", f"odd{size}", exported, "--padded")
    assert exported.read_bytes() == b"x" * size + bytes(rounded - size)


def test_import_as_raw_what_looks_like_qcow2(daemon: Daemon, tmp_path: Path) -> None:
    image = make_image(tmp_path / "lookalike.qcow2", "qcow2")
    volume = daemon.bock_json("volume", "import", image, "--format", "raw")
    exported = tmp_path / "out"
    daemon.bock("volume", "export", "lookalike", exported)
    content = image.read_bytes()
    assert exported.read_bytes() == content + bytes(volume["size_bytes"] - len(content))


def test_refused_images(daemon: Daemon, tmp_path: Path) -> None:
    base = make_image(tmp_path / "base.qcow2", "qcow2")
    overlay, outside = tmp_path / "overlay.qcow2", tmp_path / "outside.qcow2"
    tool("qemu-img", "create", "-f", "qcow2", "-b", base, "-F", "qcow2", overlay)
    tool("qemu-img", "create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'd'}", outside, "1M")
    flat, other, huge = tmp_path / "flat.vmdk", tmp_path / "other.qed", tmp_path / "huge.qcow2"
    tool("qemu-img", "create", "-f", "vmdk", "-o", "subformat=monolithicFlat", flat, "1M")
    tool("qemu-img", "create", "-f", "qed", other, "1M")
    tool("qemu-img", "create", "-f", "qcow2", huge, "17T")
    before = daemon.names()
    for image, reason in [
        (overlay, f"difference to another image, {base}"),
        (outside, f"in another file, {tmp_path / 'd'}"),
        (flat, "flat-flat.vmdk"),
        (other, "qed images are not supported"),
        (huge, "out of range"),
        (tmp_path, "neither a file nor a block device"),
        (tmp_path / "absent", "No such file"),
    ]:
        assert reason in daemon.refusal("volume", "import", image)
    raw = make_image(tmp_path / "plain.raw", "raw")
    told = daemon.refusal("volume", "import", raw, "--format", "qcow2")
    assert "not in qcow2 format" in told
    assert daemon.names() == before


def test_failed_import_leaves_no_volume(daemon: Daemon, tmp_path: Path) -> None:
    plain = tmp_path / "plain.raw"
    plain.write_bytes(b"compressible" * (MIB // 4))
    image = tmp_path / "broken.qcow2"
    tool("qemu-img", "convert", "-f", "raw", "-c", "-O", "qcow2", plain, image)
    with image.open("r+b") as file:
        file.seek(-1536, 2)
        file.write(b"\xff" * 1024)  # in a compressed cluster, of which only its reader knows
    assert "qemu-img failed" in daemon.refusal("volume", "import", image)
    assert "broken" not in daemon.names()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_import_leaves_no_volume(
    daemon: Daemon, tmp_path: Path, number: signal.Signals
) -> None:
    image = make_image(tmp_path / "endless.qcow2", "qcow2")
    importing = Terminal(
        daemon, "bock", "volume", "import", image, PATH=path_with_endless_convert(daemon, tmp_path)
    )
    importing.wait_for("10.0/40.0 MiB")
    assert "endless" in daemon.names()
    importing.signal(number)
    assert importing.end() == 130
    assert "interrupted" in importing.seen
    assert "endless" not in daemon.names()


def test_progress_only_at_a_terminal(daemon: Daemon, tmp_path: Path) -> None:
    image = make_image(tmp_path / "shown.qcow2", "qcow2")
    importing = Terminal(daemon, "bock", "volume", "import", image)
    assert importing.end() == 0
    assert "importing shown.qcow2" in importing.seen
    assert "40.0/40.0 MiB" in importing.seen
    daemon.bock("volume", "import", image, "--name", "quiet")  # asserts that stderr is empty


def test_volumes_and_snapshots_are_exported(daemon: Daemon, tmp_path: Path) -> None:
    image = make_image(tmp_path / "whole.qcow2", "qcow2")
    daemon.bock("volume", "import", image)
    daemon.bock("snapshot", "create", "whole", "whole-then")
    raw, qcow2, frozen = tmp_path / "out.raw", tmp_path / "out.qcow2", tmp_path / "then"
    daemon.bock("volume", "export", "whole", raw)
    same(image, "qcow2", raw)
    assert raw.stat().st_size == 40 * MIB
    assert raw.stat().st_blocks * 512 < 2 * MIB
    assert raw.stat().st_mode & 0o777 == 0o644
    told = daemon.bock_json("volume", "export", "whole", qcow2)
    assert told == {"image": str(qcow2), "format": "qcow2", "size_bytes": 40 * MIB}
    tool("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", image, qcow2)
    daemon.bock("snapshot", "export", "whole-then", frozen, "--format", "qcow2")
    tool("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", image, frozen)


def test_export_never_leaves_half_a_file(daemon: Daemon, tmp_path: Path) -> None:
    daemon.bock("volume", "create", "kept", "--size", "1M")
    target = tmp_path / "target" / "kept.raw"
    target.parent.mkdir()
    target.write_text("mine")
    assert "--force" in daemon.refusal("volume", "export", "kept", target)
    ending = Terminal(
        daemon,
        *("bock", "volume", "export", "kept", target, "--force", "--format", "qcow2"),
        PATH=path_with_endless_convert(daemon, tmp_path),
    )
    ending.wait_for("exporting kept")
    ending.signal(signal.SIGTERM)
    assert ending.end() == 130
    assert target.read_text() == "mine"
    daemon.bock("volume", "export", "kept", target, "--force")
    assert target.read_bytes() == bytes(MIB)
    assert list(target.parent.iterdir()) == [target]
    assert "not a regular file" in daemon.refusal("volume", "export", "kept", tmp_path, "--force")
    assert "cannot write in" in daemon.refusal("volume", "export", "kept", "/nowhere/kept")
    assert "no volume 'nobody'" in daemon.refusal("volume", "export", "nobody", tmp_path / "x")
