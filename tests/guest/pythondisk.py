"""A disk image with Python and `bock`, for guests: this machine's own files, on ext4, read-only.

Everything lies below one directory in the guest, PREFIX, and finds its libraries there, because the
guest's /lib is the initramfs's.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import bockd

from .initramfs import find_tool

PREFIX = "/python"
"""Where the guest mounts the image."""

MIB = 1 << 20

ROOM_BYTES = 16 * MIB
"""For the file system itself, besides the files."""

LEFT_OUT = ("test", "tests", "idlelib", "tkinter", "lib2to3", "ensurepip", "config-*", "*-packages")

PYTHON = f"{PREFIX}/bin/python"
"""Python with bock's packages."""

# Python takes its standard library from beside the program, wherever that is.
PYTHON_PROGRAM = f"""#!/bin/sh
export LD_LIBRARY_PATH={PREFIX}/libraries PYTHONPATH={PREFIX}/packages PYTHONDONTWRITEBYTECODE=1
exec {PREFIX}/bin/python3 "$@"
"""


def build_python_disk(root: Path, image: Path) -> None:
    """Lay the files out under `root`, a new directory, and make `image` of them."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    program = root / "bin" / "python3"
    program.parent.mkdir(parents=True)
    shutil.copy2(Path(sys.executable).resolve(), program)
    library = root / "lib" / version
    shutil.copytree(sysconfig.get_path("stdlib"), library, ignore=shutil.ignore_patterns(*LEFT_OUT))
    packages = root / "packages"
    for name in sorted(_needed("bockd", {"trio", "fastapi", "hypercorn", "lmdb", "qemu.qmp"})):
        _install(name, packages)
    shutil.copytree(Path(bockd.__file__).parent, packages / "bockd")
    # The emulated processor would compile for a minute.
    compiler = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    subprocess.run([*compiler, packages], check=True)
    libraries = root / "libraries"
    libraries.mkdir()
    for binary in (program, *root.rglob("*.so")):
        _install_libraries(binary, libraries)
    script = root / "bin" / "python"
    script.write_text(PYTHON_PROGRAM)
    script.chmod(0o755)
    used = sum(file.stat().st_size + 4096 for file in root.rglob("*"))
    size = (used + used // 10 + ROOM_BYTES) // MIB
    command = [find_tool("mkfs.ext4"), "-q", "-F", "-O", "^has_journal", "-d", str(root)]
    subprocess.run([*command, str(image), f"{size}M"], check=True, stdout=subprocess.DEVNULL)


def _needed(name: str, without: set[str]) -> set[str]:
    """The distributions that one needs, and what they need, as far as they are installed."""
    found: set[str] = set()
    for line in metadata.requires(name) or ():
        required = re.split(r"[^A-Za-z0-9._-]", line)[0].lower()
        if "extra ==" in line or required in without | found:
            continue
        try:
            metadata.distribution(required)
        except metadata.PackageNotFoundError:
            continue  # for other systems or versions
        found |= {required, *_needed(required, without)}
    return found


def _install(name: str, packages: Path) -> None:
    for file in metadata.files(name) or ():
        if not str(file).startswith(".."):
            target = packages / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(str(file.locate()), target)


def _install_libraries(binary: Path, libraries: Path) -> None:
    listing = subprocess.run(["ldd", binary], capture_output=True, text=True, check=False).stdout
    for library in re.findall(r"=> (/\S+) \(0x", listing):
        target = libraries / Path(library).name
        if not target.exists():
            shutil.copy2(library, target)
