"""`bock image`, through real NBD, the real qemu-img and a real web server."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from bockd.model import MIB

from ..daemon.driver import features
from ..daemon.process import serving
from .daemon import Daemon, Terminal
from .images import (
    image_names,
    make_image,
    path_with_changed_bock,
    path_with_endless_convert,
    same,
    tool,
)
from .webserver import CUT_BYTES, Website, website


def mark(image: Path, image_format: str, pattern: int) -> Path:
    """Give an image content of its own, since the same content is imported once."""
    tool("qemu-io", "-f", image_format, "-c", f"write -P {pattern} 20M 4k", image)
    return image


@pytest.mark.parametrize("image_format", ["raw", "qcow2", "vmdk", "vdi", "vhdx"])
def test_an_image_is_imported_from_each_format(
    daemon: Daemon, tmp_path: Path, image_format: str
) -> None:
    file = mark(make_image(tmp_path / f"img-{image_format}.x", image_format), image_format, 50)
    volumes, snapshots = daemon.names(), daemon.bock_json("snapshot", "list")
    image = daemon.bock_json("image", "import", file)
    assert image.pop("imported")
    assert image in daemon.bock_json("image", "list")
    assert (image["name"], image["disk_format"]) == (f"img-{image_format}", image_format)
    assert (image["size_bytes"], image["min_size_gib"]) == (40 * MIB, 1)
    assert image["file_bytes"] == file.stat().st_size
    assert image["checksum"] == hashlib.sha256(file.read_bytes()).hexdigest()
    same(file, image_format, image["uri"])
    shown = daemon.bock_json("image", "show", image["name"])
    assert shown == daemon.bock_json("image", "show", image["id"])
    assert shown == {**image, "space": shown["space"]}
    # Empty areas take nothing.
    assert MIB <= shown["space"]["exclusive_bytes"] < 4 * MIB + 8 * features().hole_bytes
    assert daemon.names() == volumes
    assert daemon.bock_json("snapshot", "list") == snapshots


def test_the_same_content_is_imported_once(daemon: Daemon, tmp_path: Path) -> None:
    file = mark(make_image(tmp_path / "once.qcow2", "qcow2"), "qcow2", 51)
    first = daemon.bock_json("image", "import", file)
    copy = tmp_path / "copy.qcow2"
    copy.write_bytes(file.read_bytes())
    assert daemon.bock_json("image", "import", copy) == {**first, "imported": False}
    told = daemon.bock("image", "import", copy, "--name", "twice")
    assert told.startswith(f"not imported again: copy.qcow2 (qcow2) is image {first['id']} (once)")
    assert "twice" not in image_names(daemon)
    other = mark(copy, "qcow2", 52)
    refused = daemon.refusal("image", "import", other, "--name", "once")
    assert first["id"] in refused
    assert "choose another name" in refused
    told = daemon.bock("image", "import", other, "--name", "twice")
    assert told.startswith("imported copy.qcow2 (qcow2) as image ")


def test_list_show_delete(daemon: Daemon, tmp_path: Path) -> None:
    file = mark(make_image(tmp_path / "seen.raw", "raw"), "raw", 53)
    image = daemon.bock_json("image", "import", file)
    assert image.pop("imported")
    listed = daemon.bock("image", "list")
    assert listed.splitlines()[0].split() == ["ID", "NAME", "SIZE", "FORMAT", "FILE", "IMPORTED"]
    assert [image["id"], "seen", "40", "MiB", "raw"] in [
        line.split()[:5] for line in listed.splitlines()
    ]
    assert image["checksum"] in daemon.bock("image", "show", "seen")
    reading = subprocess.Popen(
        ["qemu-io", "-f", "raw", "-r", image["uri"]], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with reading:
        assert reading.stdin is not None
        assert reading.stdout is not None
        reading.stdin.write(b"read 0 512\n")
        reading.stdin.flush()
        reading.stdout.readline()
        assert "being read" in daemon.refusal("image", "delete", "seen")
        reading.communicate(b"quit\n")
    gone = daemon.run("bock", "image", "delete", "seen", "--json")
    while gone.status:  # until the daemon has seen the reader go
        assert "being read" in gone.err
        gone = daemon.run("bock", "image", "delete", "seen", "--json")
    assert json.loads(gone.out) == {"deleted": image}
    assert "bock image list" in daemon.refusal("image", "show", "seen")
    assert "no image" in daemon.refusal("image", "delete", image["id"])


def test_a_question_before_deleting(daemon: Daemon, tmp_path: Path) -> None:
    file = mark(make_image(tmp_path / "asked.raw", "raw"), "raw", 54)
    daemon.bock("image", "import", file)
    asked = Terminal(daemon, "bock", "image", "delete", "asked")
    asked.wait_for("Delete image")
    asked.type("n\n")
    assert asked.end() == 1
    assert "asked" in image_names(daemon)
    assert daemon.bock("image", "delete", "asked", "--yes").startswith("deleted image ")


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "/etc/passwd", "..", ".x", "a\\b", "a\nb", "", " a", "12", "x" * 256]
)
def test_an_image_name_that_cannot_be_is_refused(daemon: Daemon, tmp_path: Path, name: str) -> None:
    file = make_image(tmp_path / "named.qcow2", "qcow2")
    before = image_names(daemon)
    assert "name" in daemon.misuse("image", "import", file, "--name", name)
    for command in ("show", "delete"):
        if name:
            assert "no image" in daemon.refusal("image", command, name)
        else:
            assert "refers to nothing" in daemon.misuse("image", command, name)
    assert image_names(daemon) == before


def test_refused_files(daemon: Daemon, tmp_path: Path) -> None:
    base = mark(make_image(tmp_path / "base.qcow2", "qcow2"), "qcow2", 55)
    overlay, outside = tmp_path / "overlay.qcow2", tmp_path / "outside.qcow2"
    tool("qemu-img", "create", "-f", "qcow2", "-b", base, "-F", "qcow2", overlay)
    tool("qemu-img", "create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'd'}", outside, "1M")
    flat, secret = tmp_path / "flat.vmdk", tmp_path / "secret.qcow2"
    tool("qemu-img", "create", "-f", "vmdk", "-o", "subformat=monolithicFlat", flat, "1M")
    tool(
        *("qemu-img", "create", "-f", "qcow2", "--object", "secret,id=s,data=x"),
        *("-o", "encrypt.format=aes,encrypt.key-secret=s", secret, "1M"),
    )
    before = image_names(daemon)
    for file, reason in [
        (overlay, f"difference to another image, {base}"),
        (outside, f"in another file, {tmp_path / 'd'}"),
        (flat, "flat-flat.vmdk"),
        (secret, "is encrypted"),
        (tmp_path, "neither a file nor a block device"),
        (tmp_path / "absent", "No such file"),
    ]:
        assert reason in daemon.refusal("image", "import", file)
    with website(overlay.read_bytes()) as site:
        refused = daemon.refusal("image", "import", f"{site.url}/plain/overlay.qcow2")
        assert f"{site.url}/plain/overlay.qcow2: it is only the difference to another" in refused
    assert image_names(daemon) == before


def test_a_file_that_changes_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    file = mark(make_image(tmp_path / "moving.raw", "raw"), "raw", 56)
    change = (
        "from bockd.cli import transfer\n"
        "copy_in = transfer.copy_in\n"
        "def late(path, *more):\n"
        "    with path.open('r+b') as file:\n"
        "        file.write(b'changed')\n"
        "    copy_in(path, *more)\n"
        "transfer.copy_in = late\n"
    )
    path = path_with_changed_bock(daemon, tmp_path, change)
    result = daemon.run("bock", "image", "import", file, PATH=path)
    assert result.status == 1
    assert "changed while it was imported" in result.err
    assert "moving" not in image_names(daemon)


def test_looking_at_a_file_is_limited(daemon: Daemon, tmp_path: Path) -> None:
    file = make_image(tmp_path / "bomb.qcow2", "qcow2")
    stand_in = tmp_path / "bin" / "qemu-img"
    stand_in.parent.mkdir()
    path = f"{stand_in.parent}:{daemon.environment['PATH']}"
    stand_in.write_text('#!/bin/bash\necho "limits $(ulimit -v) $(ulimit -t)" >&2; exit 1\n')
    stand_in.chmod(0o755)
    result = daemon.run("bock", "image", "import", file, PATH=path)
    assert (result.status, result.err) == (1, f"bock: {file}: limits 1048576 30\n")
    stand_in.write_text("#!/bin/bash\nulimit -t 1; while :; do :; done\n")
    result = daemon.run("bock", "image", "import", file, PATH=path)
    assert result.status == 1
    assert "took too long" in result.err


# -- interruptions ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_import_leaves_nothing(
    daemon: Daemon, tmp_path: Path, number: signal.Signals
) -> None:
    file = mark(make_image(tmp_path / "stopped.qcow2", "qcow2"), "qcow2", 57)
    importing = Terminal(
        daemon, "bock", "image", "import", file, PATH=path_with_endless_convert(daemon, tmp_path)
    )
    importing.wait_for("10.0/40.0 MiB")
    before = layers(daemon)
    importing.signal(number)
    assert importing.end() == 130
    assert "interrupted; no image was left behind" in importing.seen
    assert "stopped" not in image_names(daemon)
    wait_until(lambda: layers(daemon) < before)


def test_the_daemon_is_killed_while_importing(tmp_path: Path) -> None:
    file = make_image(tmp_path / "half.qcow2", "qcow2")
    with serving(tmp_path / "data") as bockd:
        daemon = Daemon(bockd.data_dir)
        whole = bockd.bock("image", "import", make_image(tmp_path / "whole.raw", "raw"))
        assert whole.pop("imported")
        path = path_with_endless_convert(daemon, tmp_path)
        importing = Terminal(daemon, "bock", "image", "import", file, PATH=path)
        importing.wait_for("10.0/40.0 MiB")
        importing.signal(signal.SIGSTOP)  # else it may end by itself first
        bockd.kill()
        importing.signal(signal.SIGINT)
        importing.signal(signal.SIGCONT)
        assert importing.end() == 130
        assert "Traceback" not in importing.seen
        bockd.start()
        assert bockd.bock("image", "list") == [whole]
        report = bockd.check()
        assert (report["volumes"], report["snapshots"]) == (0, 1)
        image = bockd.bock("image", "import", file)
        bockd.kill()  # right after success: it is there
        bockd.start()
        assert bockd.bock("image", "show", "half")["id"] == image["id"]
        same(file, "qcow2", image["uri"])


def test_the_client_is_killed_while_importing(tmp_path: Path) -> None:
    file = make_image(tmp_path / "half.qcow2", "qcow2")
    with serving(tmp_path / "data") as bockd:
        daemon = Daemon(bockd.data_dir)
        path = path_with_endless_convert(daemon, tmp_path)
        importing = Terminal(daemon, "bock", "image", "import", file, PATH=path)
        importing.wait_for("10.0/40.0 MiB")
        importing.signal(signal.SIGKILL)
        assert bockd.bock("image", "list") == []
        image = bockd.bock("image", "import", file)  # the half one is in nobody's way
        assert image.pop("imported")
        bockd.stop()  # hangs up on the orphaned tool
        importing.end()
        bockd.start()
        assert bockd.bock("image", "list") == [image]
        assert bockd.check()["volumes"] == 0


def layers(daemon: Daemon) -> int:
    """How many layers the pool has, or images in a cluster; the pool must be whole."""
    result = daemon.run("bockd", "check", "--json")
    assert (result.status, result.err) == (0, ""), result
    return int(json.loads(result.out)["layers"])


def wait_until(condition: object, seconds: float = 60.0) -> None:
    """Return when the condition holds."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"


# -- URLs ---------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A qcow2 image of more than CUT_BYTES, different in each test."""
    path = make_image(tmp_path / "remote.qcow2", "qcow2")
    name = f"{request.node.name}".encode()
    with path.open("ab") as open_file:
        open_file.write(name)  # beyond what qemu-img reads
    assert path.stat().st_size > 2 * CUT_BYTES
    return path


def imported_from(daemon: Daemon, site: Website, path: str, file: Path) -> None:
    """Import from the site; the image holds the file's content."""
    name = f"url-{path.split('/')[1]}"
    image = daemon.bock_json("image", "import", f"{site.url}{path}", "--name", name)
    assert image["checksum"] == hashlib.sha256(site.content).hexdigest()
    assert image["file_bytes"] == len(site.content)
    same(file, "qcow2", image["uri"])


def test_from_a_url(daemon: Daemon, file: Path) -> None:
    with website(file.read_bytes()) as site:
        imported_from(daemon, site, "/moved/debian%2012.qcow2?x=1", file)
        told = daemon.bock("image", "import", f"{site.url}/plain/y.qcow2")
        assert told.startswith("not imported again: y.qcow2 (qcow2) is image ")
        assert site.ranges == []
    importing = Terminal(daemon, "bock", "image", "import", f"{site.url}/plain/y.qcow2")
    assert importing.end() == 1
    assert "fetching http://127.0.0.1" in importing.seen.replace("\n", " ")


def test_the_name_comes_from_the_url(daemon: Daemon, file: Path) -> None:
    with website(file.read_bytes()) as site:
        showing = Terminal(daemon, "bock", "image", "import", f"{site.url}/plain/a%20b.qcow2?n=1")
        assert showing.end() == 0
    assert "fetching a b.qcow2" in showing.seen
    assert "a b" in image_names(daemon)
    assert "choose" in daemon.refusal("image", "import", f"{site.url}/plain/..%2f.x")


def test_a_broken_transfer_is_taken_up(daemon: Daemon, file: Path) -> None:
    with website(file.read_bytes()) as site:
        imported_from(daemon, site, "/cut/x.qcow2", file)
        assert site.ranges == [
            f"bytes={done}-" for done in range(CUT_BYTES, len(site.content), CUT_BYTES)
        ]


def test_what_changed_meanwhile_is_fetched_anew(daemon: Daemon, file: Path) -> None:
    with website(file.read_bytes()) as site:
        imported_from(daemon, site, "/changing/x.qcow2", file)
        assert site.requests == 3


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/deaf/x.qcow2", "failed after"),
        ("/none/x.qcow2", "answered 404 Not Found"),
        ("/circle/x.qcow2", "redirect"),
        ("/huge/x.qcow2", "is larger than"),
        ("/packed/x.qcow2", "compressed"),
    ],
)
def test_what_cannot_be_fetched(
    daemon: Daemon, file: Path, tmp_path: Path, path: str, reason: str
) -> None:
    kept = tmp_path / "downloads"
    kept.mkdir()
    before = image_names(daemon)
    with website(file.read_bytes()) as site:
        result = daemon.run("bock", "image", "import", f"{site.url}{path}", TMPDIR=str(kept))
    assert (result.status, result.out) == (1, ""), result
    assert reason in result.err.lower() or reason in result.err
    assert result.err.count("\n") == 1
    assert image_names(daemon) == before
    assert list(kept.iterdir()) == []
