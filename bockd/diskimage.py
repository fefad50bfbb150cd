"""Disk images as files: what one is, and whether it can become a volume.

An image that points at other files is refused, because a stranger's image could name any file
of this machine and have its contents imported.
"""

from __future__ import annotations

import os
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bockd.errors import InvalidRequestError, NotFoundError, NotSupportedError
from bockd.model import BLOCK_SIZE, MIN_VOLUME_BYTES, check_volume_size

IMPORT_FORMATS = ("raw", "qcow2", "vmdk", "vdi", "vhdx")
EXPORT_FORMATS = ("raw", "qcow2")

LOOK_MEMORY_BYTES = 1 << 30
LOOK_CPU_SECONDS = 30
"""For looking at an image, which a stranger may have made: a header can ask for any table size. The
same limits that OpenStack's services set."""

TOOL_MISSING = 127
"""Exit status of what runs another program and does not find it."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image that may be imported. `path` is absolute, so that qemu-img never takes it for a
    protocol ("nbd:...") or an option."""

    path: Path
    format: str
    size_bytes: int
    """What a guest would see."""

    @property
    def volume_bytes(self) -> int:
        """The size of the volume that takes it: whole blocks, at least the minimum."""
        return max(-(-self.size_bytes // BLOCK_SIZE) * BLOCK_SIZE, MIN_VOLUME_BYTES)


def open_image(path: Path, image_format: str | None) -> Image:
    """Look at an image, in `image_format` or in the one its content shows.

    Raises NotFoundError, InvalidRequestError (not an image), or NotSupportedError with the reason
    why this image cannot be imported and what to do.
    """
    path = path.absolute()
    check_file(path)
    found = describe(path, image_format)
    image = Image(path, found["format"], found["virtual-size"])
    if reason := refusal(image, found):
        raise NotSupportedError(f"{path}: {reason}")
    check_volume_size(image.volume_bytes)
    return image


def check_file(path: Path) -> None:
    """Raise unless `path` is a readable file or block device."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise NotFoundError(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise InvalidRequestError(f"{path} is neither a file nor a block device")
    if not os.access(path, os.R_OK):
        raise InvalidRequestError(f"cannot read {path}: permission denied")


def describe(path: Path, image_format: str | None) -> dict[str, Any]:
    """What `qemu-img info` says."""
    chosen = [] if image_format is None else ["-f", image_format]
    limits = ["prlimit", f"--as={LOOK_MEMORY_BYTES}", f"--cpu={LOOK_CPU_SECONDS}"]
    command = ["qemu-img", "info", "--output=json", *chosen, str(path)]
    result = run_tool([*limits, *command])
    if result.returncode == TOOL_MISSING:
        raise missing_tool("qemu-img")
    if result.returncode < 0:
        raise InvalidRequestError(f"{path}: qemu-img took too long to look at it; it is no image")
    if result.returncode:
        raise InvalidRequestError(tool_message(result.stderr))
    found: dict[str, Any] = msgspec.json.decode(result.stdout)
    return found


def refusal(image: Image, found: dict[str, Any]) -> str | None:
    """Why an image cannot be imported, or None."""
    details = found.get("format-specific", {}).get("data", {})
    whole_copy = f"make a whole image of it first: qemu-img convert -O qcow2 {image.path} NEW"
    if image.format not in IMPORT_FORMATS:
        return (
            f"{image.format} images are not supported (only {', '.join(IMPORT_FORMATS)}); "
            "to import its bytes as they are, say --format raw"
        )
    if backing := found.get("backing-filename"):
        return f"it is only the difference to another image, {backing}; {whole_copy}"
    if outside := details.get("data-file"):
        return f"its data is in another file, {outside}; {whole_copy}"
    for extent in details.get("extents", []):
        if Path(extent["filename"]).absolute() != image.path:
            return f"its data is in another file, {extent['filename']}; {whole_copy}"
    if found.get("encrypted"):
        return "it is encrypted; decrypt it first, or import its bytes with --format raw"
    if details.get("corrupt"):
        return f"it is marked corrupt; try: qemu-img check -r all {image.path}"
    return None


def run_tool(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Run one of QEMU's tools to its end. Raises NotFoundError when it is not installed."""
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise missing_tool(command[0]) from error


def missing_tool(name: str) -> NotFoundError:
    """The error that says how to get a tool."""
    return NotFoundError(f"{name} is not installed: apt install qemu-utils")


def tool_message(stderr: bytes) -> str:
    """What a tool complained about, on one line and without its own name in front."""
    lines = stderr.decode(errors="replace").strip().splitlines()
    return "; ".join(line.removeprefix("qemu-img: ").strip() for line in lines) or "no reason given"
