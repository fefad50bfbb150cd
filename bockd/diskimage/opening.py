"""The one way in: a file becomes an `Image`, or an error says why not and what to do.

An image that points at other files is refused, because a stranger's image could name any file
of this machine and have its contents imported.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from bockd.diskimage.extents import map_image, nonzero_bytes, stored_bytes
from bockd.diskimage.kinds import (
    Ends,
    VhdType,
    promised_format,
    read_ends,
    vhd_type,
    why_not_raw,
    wrapping_of,
)
from bockd.diskimage.tools import LOOK_CPU_SECONDS, run_limited, tool_message
from bockd.diskimage.whole import check_extents, check_metadata
from bockd.errors import (
    BockdError,
    DamagedError,
    InvalidRequestError,
    NotFoundError,
    NotSupportedError,
)
from bockd.model import GIB, size_of_volume_for
from bockd.validation import check_volume_size

IMPORT_FORMATS = ("raw", "qcow2", "vmdk", "vdi", "vhdx", "vhd")
"""As Glance calls them; QEMU calls a VHD `vpc`."""

QEMU_NAMES = {"vhd": "vpc"}

INSIST = "to take its bytes as they are, say --format raw"


@dataclass(frozen=True, slots=True)
class Image:
    """An image that may be imported. `path` is absolute, so that qemu-img never takes it for a
    protocol ("nbd:...") or an option."""

    path: Path
    format: str
    size_bytes: int
    """What a guest would see."""
    source: list[str] = field(default_factory=list)
    """qemu-img's arguments for it."""
    data_bytes: int = 0
    """At most so much of it has to be stored."""
    snapshots: tuple[str, ...] = ()
    """Names of a qcow2's internal snapshots, which are not imported."""

    @property
    def volume_bytes(self) -> int:
        """The size of the volume that takes it: whole blocks, at least the minimum."""
        return size_of_volume_for(self.size_bytes)

    def needed_bytes(self, enough_bytes: int) -> int:
        """Return how much of it has to be stored. When there is room for `enough_bytes` only, a
        raw image is read for what is not zeros. Raises OSError."""
        if self.data_bytes <= enough_bytes or self.format != "raw":
            return self.data_bytes
        return nonzero_bytes(self.path, self.size_bytes)


def open_image(path: Path, image_format: str | None, name: str | None = None) -> Image:
    """Look at an image, in `image_format` or in the one that its content shows and its `name` does
    not contradict. Without a format, raw is believed only when nothing speaks against it.

    Raises NotFoundError, InvalidRequestError (not an image), DamagedError (a part of it is missing
    or wrong), or NotSupportedError with the reason why it cannot be imported and what to do.
    """
    path = path.absolute()
    check_file(path)
    try:
        return _open(path, image_format, path.name if name is None else name)
    except OSError as error:
        raise InvalidRequestError(f"cannot read {path}: {error.strerror}") from error
    except BockdError as error:
        if str(error).startswith(str(path)) or f"'{path}'" in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error


def _open(path: Path, image_format: str | None, name: str) -> Image:
    ends = read_ends(path)
    if not ends.length_bytes:
        raise InvalidRequestError("it is empty")
    if image_format is None and (wrapping := wrapping_of(ends)) is not None:
        raise NotSupportedError(f"it is {wrapping.value}, not a disk; unpack it first, or {INSIST}")
    vhd = vhd_type(ends) if image_format in (None, "vhd") else None
    if vhd is VhdType.DIFFERENCING:
        raise NotSupportedError(
            "it is only the difference to another VHD; merge the two first, with the program that "
            "made them"
        )
    chosen = "vhd" if vhd is not None else image_format
    found = describe(path, chosen)
    image_format = chosen or str(found["format"])
    # QEMU rounds a raw image up to whole sectors.
    size_bytes = ends.length_bytes if image_format == "raw" else found["virtual-size"]
    image = Image(path, image_format, size_bytes, arguments_of(path, image_format))
    if reason := refusal(image, found):
        raise NotSupportedError(reason)
    if chosen is None:
        check_evidence(image, ends, name)
    image = _looked_through(image, found, ends)
    check_volume_size(image.volume_bytes)
    return image


def check_evidence(image: Image, ends: Ends, name: str) -> None:
    """Raise InvalidRequestError when what was found contradicts the name or is no disk."""
    if image.format == "raw":
        if (reason := why_not_raw(ends, name)) is not None:
            raise InvalidRequestError(f"{reason}; {INSIST}")
    elif promised_format(name) == "raw":
        raise InvalidRequestError(
            f"its name promises raw, but it holds a {image.format} image: say --format "
            f"{image.format}, or --format raw to take its bytes as they are"
        )


def _looked_through(image: Image, found: dict[str, Any], ends: Ends) -> Image:
    """The image with what is in it, when all of it is there. DamagedError."""
    if image.format == "raw":
        data_bytes, snapshots = stored_bytes(image.path, ends.length_bytes), []
    else:
        seconds = LOOK_CPU_SECONDS + ends.length_bytes // GIB
        mapped = map_image(image.source, seconds)
        check_extents(mapped, ends.length_bytes)
        dirty = bool(found.get("dirty-flag"))
        check_metadata(image.path, image.format, dirty=dirty, cpu_seconds=seconds)
        data_bytes = sum(run.length for run in mapped if run.data and not run.zero)
        if image.format == "vhdx":  # QEMU shows all of one as data, and it is never compressed
            data_bytes = min(data_bytes, ends.length_bytes)
        snapshots = [str(one["name"] or one["id"]) for one in found.get("snapshots", [])]
    return Image(
        image.path, image.format, image.size_bytes, image.source, data_bytes, tuple(snapshots)
    )


def check_file(path: Path) -> None:
    """Raise unless `path` is a readable file or block device."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise NotFoundError(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise InvalidRequestError(f"{path} is neither a file nor a block device")
    if not os.access(path, os.R_OK, effective_ids=True):
        raise InvalidRequestError(f"cannot read {path}: permission denied")


def arguments_of(path: Path, image_format: str | None) -> list[str]:
    """Return qemu-img's arguments that name an image.

    QEMU takes the size of a VHD from its geometry, which for the disks of most programs is a little
    less than the size. What the last cylinder does not hold would be missing.
    """
    if image_format != "vhd":
        return [*(() if image_format is None else ("-f", image_format)), str(path)]
    driver = "host_device" if path.is_block_device() else "file"
    options = {
        "driver": QEMU_NAMES[image_format],
        "force_size_calc": "current_size",
        "file": {"driver": driver, "filename": str(path)},
    }
    return [f"json:{msgspec.json.encode(options).decode()}"]


def describe(path: Path, image_format: str | None) -> dict[str, Any]:
    """Return what `qemu-img info` reports of an image. Raises InvalidRequestError, DamagedError."""
    command = ["qemu-img", "info", "--output=json", *arguments_of(path, image_format)]
    result = run_limited(command)
    if result.returncode < 0:
        raise InvalidRequestError(f"{path}: qemu-img took too long to look at it; it is no image")
    if result.returncode:
        raise unreadable(path, image_format, tool_message(result.stderr))
    found: dict[str, Any] = msgspec.json.decode(result.stdout)
    return found


def unreadable(path: Path, image_format: str | None, told: str) -> BockdError:
    """Return the error for an image that QEMU cannot open: DamagedError when QEMU says that a part
    is missing, as it does for VHDX and VHD, else InvalidRequestError."""
    *_, source = arguments_of(path, image_format)
    told = told.replace(source, str(path))
    if "truncated" in told:
        return DamagedError(f"it is cut short; get it again ({told})")
    return InvalidRequestError(told)


def refusal(image: Image, found: dict[str, Any]) -> str | None:
    """Return why an image cannot be imported, or None."""
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
