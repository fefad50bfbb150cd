"""The daemon confined as its unit says, without systemd: it works, and the walls are there."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attach.tenant import Tenant, connected, is_refused
from tests.daemon.process import Bockd, program, serving
from tests.service.confined import NOBODY, launcher
from tests.service.dropins import view_dropin

MIB = 1 << 20


@pytest.fixture
def confined(unit: Path, state: Path, tmp_path: Path) -> Iterator[Bockd]:
    """A daemon with both TCP frontends open."""
    with serving(
        state,
        nbd_listen="localhost:0",
        api_listen="localhost:0",
        log=tmp_path / "log",
        launcher=launcher(unit, state),
    ) as running:
        yield running


def test_all_of_it_works(confined: Bockd, tmp_path: Path) -> None:
    """Volumes, I/O, snapshots, images, attachments, a restart, a SIGKILL, deletion and `check`."""
    check_that_it_is_confined(confined)
    confined.bock("volume", "create", "disk1", "--size", "64M")
    with confined.connected("disk1") as client:
        client.pwrite(b"old" * 4096, 0)
        client.zero(4096, 4096)
        client.flush()
        confined.bock("snapshot", "create", "disk1", "frozen")
        client.pwrite(b"new" * 4096, 0)
        client.trim(MIB, 0)
        client.pwrite(b"now", 100)
        client.cache(MIB, 0)
        client.block_status(MIB, 0, lambda *_: 0)
    confined.bock("volume", "create", "disk2", "--from-snapshot", "frozen")
    confined.bock("volume", "extend", "disk1", "--size", "96M")
    image = tmp_path / "image"
    image.write_bytes(os.urandom(MIB))
    confined.bock("image", "import", image, "--name", "picture")
    confined.bock("volume", "import", image, "--name", "disk3")
    tenant = Tenant(confined)
    volume = tenant.create()
    attached = tenant.attach(volume)
    with connected(attached.uri) as client:
        client.pwrite(b"attached", 0)
    confined.kill()
    confined.start()
    with confined.connected("disk1") as client:
        assert client.pread(4, 99) == b"\0now"
    with confined.connected("disk2") as client:
        assert client.pread(6, 0) == b"oldold"
    again = Tenant(confined).attachment(volume)["bockd"]["uri"]
    with connected(again) as client:
        assert client.pread(8, 0) == b"attached"
    Tenant(confined).detach(volume)
    assert is_refused(again)
    confined.wait_until_unused("disk1")
    confined.bock("snapshot", "revert", "frozen")
    confined.restart()
    confined.wait_until_unused("disk2")
    confined.bock("volume", "delete", "disk2")
    confined.bock("snapshot", "delete", "frozen")
    confined.check()
    assert modes(confined.data_dir) == {stat.S_IFDIR | 0o700, stat.S_IFREG | 0o600} | {
        stat.S_IFSOCK | 0o600
    }


def test_images_are_converted(confined: Bockd, unit: Path, state: Path) -> None:
    """As the daemon does it with the images of a Glance: by qemu-img, under the same walls."""
    image = state / "image.qcow2"
    confined.tool("qemu-img", "create", "-f", "qcow2", image, "8M")
    confined.tool("qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 1M", image)
    shutil.chown(image, NOBODY, NOBODY)
    confined.bock("volume", "create", "disk1", "--size", "8M")
    looked = trying(
        unit,
        state,
        "from bockd.diskimage import open_image; from pathlib import Path; "
        f"print(open_image(Path({str(image)!r}), 'qcow2').size_bytes)",
    )
    assert (looked.stdout, looked.stderr) == (f"{8 * MIB}\n", "")
    tool = [program("qemu-img"), "convert", "-n", "--target-is-zero", "-W", "-f", "qcow2"]
    command = [*launcher(unit, state), *tool, str(image), "-O", "raw", confined.uri("disk1")]
    subprocess.run(command, check=True)
    with confined.connected("disk1") as client:
        assert client.pread(2 * MIB, MIB // 2) == (bytes(MIB // 2) + b"\7" * MIB + bytes(MIB // 2))


def check_that_it_is_confined(daemon: Bockd) -> None:
    """By what the kernel says of the process."""
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines()
        if ":\t" in line
    )
    assert status["Uid"].split() == [str(NOBODY)] * 4
    assert status["Groups"].strip() == ""
    assert {status[f"Cap{which}"] for which in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def modes(directory: Path) -> set[int]:
    """The types and modes of all that is in a directory."""
    return {path.lstat().st_mode for path in directory.rglob("*")}


# -- the walls ------------------------------------------------------------------------------------


def trying(unit: Path, state: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code confined."""
    return subprocess.run(
        [*launcher(unit, state), sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.chroot('/')",
        "import os; os.chown('/proc/self', 1, 1)",
        "import os; os.setuid(1)",
        "import ctypes; ctypes.CDLL(None).mount(b'/', b'/', None, 4096, None)",
        "import mmap; mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)",
    ],
)
def test_calls_outside_the_filter_end_it(unit: Path, state: Path, code: str) -> None:
    """So the daemon, which lives, makes none."""
    assert trying(unit, state, code).returncode == -signal.SIGSYS


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("open('/etc/bockd-was-here', 'w')", errno.EROFS),
        ("open('/usr/bockd-was-here', 'w')", errno.EROFS),
        ("open('/etc/shadow')", errno.EACCES),
        ("open('/dev/kvm')", errno.ENOENT),
        ("open('/proc/1/status')", errno.ENOENT),
        ("import socket; socket.socket(socket.AF_NETLINK)", errno.EAFNOSUPPORT),
        ("import os; os.chmod(os.environ['STATE'], 0o4700)", errno.EPERM),
    ],
)
def test_the_walls_are_there(
    unit: Path, state: Path, monkeypatch: pytest.MonkeyPatch, code: str, error: int
) -> None:
    monkeypatch.setenv("STATE", str(state))
    ended = trying(unit, state, code)
    assert f"[Errno {error}]" in ended.stderr, ended
    assert trying(unit, state, "import os; open(os.environ['STATE'] + '/x', 'w')").returncode == 0


def test_the_view_with_its_drop_in(unit: Path, state: Path, tmp_path: Path) -> None:
    """As root with two capabilities: volumes are files, seen by the machine's other processes."""
    dropin = tmp_path / "view.conf"
    dropin.write_text(view_dropin())
    for path in (state, *state.rglob("*")):
        os.chown(path, 0, 0)
    view = tmp_path / "view"
    with serving(
        state, mount=view, log=tmp_path / "log", launcher=launcher(unit, state, dropin)
    ) as daemon:
        daemon.bock("volume", "create", "disk1", "--size", "1M")
        file = view / "volumes" / "disk1"
        with file.open("r+b") as handle:
            handle.write(b"through the view")
        with daemon.connected("disk1") as client:
            assert client.pread(16, 0) == b"through the view"
    assert not view.is_mount()
