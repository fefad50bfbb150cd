"""Disk images for the command line: made, compared, listed, and a conversion without an end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .daemon import Daemon


def tool(*arguments: str | Path) -> None:
    """Run one of QEMU's tools, which must succeed."""
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)


def make_image(path: Path, image_format: str) -> Path:
    """Make a 40 MiB image with 1 MiB and a little data in it."""
    tool("qemu-img", "create", "-f", image_format, path, "40M")
    tool("qemu-io", "-f", image_format, "-c", "write -P 7 3M 1M", path)
    tool("qemu-io", "-f", image_format, "-c", "write -P 9 30000k 512", path)
    return path


def same(image: Path, image_format: str, other: str | Path) -> None:
    """Assert that both hold the same bytes."""
    tool("qemu-img", "compare", "-f", image_format, "-F", "raw", image, other)


def path_with_endless_convert(daemon: Daemon, tmp_path: Path) -> str:
    """Make a PATH whose `qemu-img convert` writes a quarter, says so, and stays for minutes."""
    stand_in = tmp_path / "bin" / "qemu-img"
    stand_in.parent.mkdir()
    stand_in.write_text(
        "#!/bin/bash\n"
        f'[[ $1 == convert ]] || PATH={daemon.environment["PATH"]!r} exec qemu-img "$@"\n'
        '[[ ${@: -1} != /* ]] || : >"${@: -1}"\n'  # qemu-io makes no file
        "printf '    (25.00/100%%)\\r'\n"
        "exec qemu-io -f raw -c 'write 0 10M' -c 'sleep 300000' \"${@: -1}\" >/dev/null\n"
    )
    stand_in.chmod(0o755)
    return f"{stand_in.parent}:{daemon.environment['PATH']}"


def path_with_changed_bock(daemon: Daemon, tmp_path: Path, change: str) -> str:
    """Make a PATH whose `bock` runs the statements `change` before it begins."""
    stand_in = tmp_path / "changed" / "bock"
    stand_in.parent.mkdir()
    stand_in.write_text(f"#!{sys.executable}\n{change}\nfrom bockd.cli.bock import main\nmain()\n")
    stand_in.chmod(0o755)
    return f"{stand_in.parent}:{daemon.environment['PATH']}"


def path_with_stopping_copy(daemon: Daemon, tmp_path: Path, parts: int) -> str:
    """Make a PATH whose `bock` copies until it has received `parts` parts of replies over NBD, and
    then stays until it gets SIGUSR1."""
    change = (
        "import signal\n"
        "signal.signal(signal.SIGUSR1, lambda *_: None)\n"
        "from bockd.nbd.client import Export\n"
        "receive, left = Export.receive, list(range(PARTS))\n"
        "def stopping(export):\n"
        "    if not left:\n"
        "        signal.pause()\n"
        "    else:\n"
        "        left.pop()\n"
        "    return receive(export)\n"
        "Export.receive = stopping\n"
    )
    return path_with_changed_bock(daemon, tmp_path, change.replace("PARTS", str(parts)))


def image_names(daemon: Daemon) -> set[str]:
    """Return the names of the images that exist."""
    return {image["name"] for image in daemon.bock_json("image", "list")}
