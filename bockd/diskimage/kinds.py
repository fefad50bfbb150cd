"""What a file is, by its name and by its first and last bytes.

"raw" fits every file, so it is believed only when nothing contradicts it: a name that promises
another format, the magic number of something that is no disk, a page of markup, or a length that is
no multiple of a disk's sector.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePath

SECTOR_BYTES = 512

HEAD_BYTES = 4096
"""Holds every magic number below."""

PROMISES = {
    ".qcow2": "qcow2",
    ".vmdk": "vmdk",
    ".vdi": "vdi",
    ".vhdx": "vhdx",
    ".vhd": "vhd",
    ".vpc": "vhd",
    ".raw": "raw",
}
"""Endings of names that promise a format. `.img` and all others promise nothing."""

PACKED_ENDINGS = {
    ".gz": "gzip",
    ".xz": "xz",
    ".zst": "zstd",
    ".bz2": "bzip2",
    ".ova": "tar",
    ".tar": "tar",
}
"""Endings that promise something which has a disk in it."""


class Wrapping(Enum):
    """What can have a disk image in it, and is taken off before the image is looked at."""

    GZIP = "gzip"
    XZ = "xz"
    ZSTD = "zstd"
    BZIP2 = "bzip2"
    TAR = "tar"


_WRAPPINGS = (
    (0, b"\x1f\x8b", Wrapping.GZIP),
    (0, b"\xfd7zXZ\0", Wrapping.XZ),
    (0, b"\x28\xb5\x2f\xfd", Wrapping.ZSTD),
    (0, b"BZh", Wrapping.BZIP2),
    (257, b"ustar", Wrapping.TAR),
)

_NO_DISKS = (
    (0, b"PK\x03\x04", "a zip archive", "take the disk out of it first: unzip"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "take the disk out of it first: 7z x"),
    (0, b"Rar!\x1a\x07", "a RAR archive", "take the disk out of it first"),
    (0, b"\x04\x22\x4d\x18", "compressed by lz4", "decompress it first: lz4 -d"),
    (0, b"\x89LZO\0", "compressed by lzop", "decompress it first: lzop -d"),
    (0, b"LZIP", "compressed by lzip", "decompress it first: lzip -d"),
    (0, b"\x3a\xff\x26\xed", "an Android sparse image", "make a raw image of it: simg2img"),
    (0, b"MSWIM\0\0\0", "a Windows image (WIM), which holds files", "apply it to a disk first"),
    (0, b"EVF\t\r\n\xff\0", "an EnCase image", "make a raw image of it: ewfexport"),
    (0, b"%PDF-", "a PDF document", "look for the image itself"),
    (0, b"!<arch>\n", "a Debian package or an archive", "look for the image itself"),
    (0, b"\xed\xab\xee\xdb", "an RPM package", "look for the image itself"),
    (0, b"MSCF\0\0\0\0", "a cabinet archive", "take the disk out of it first"),
)
"""Offset, magic number, what it is, what to do."""

_DMG_TRAILER = b"koly"

_TEXT = bytes(range(0x20, 0x7F)) + b"\t\n\r\f" + bytes(range(0x80, 0x100))


@dataclass(frozen=True, slots=True)
class Ends:
    """The first and last bytes of a file, and its length."""

    head: bytes
    tail: bytes
    """The last sector."""
    length_bytes: int


def read_ends(path: Path) -> Ends:
    """Read what `Ends` holds. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        length = file.seek(0, 2)
        file.seek(max(length - SECTOR_BYTES, 0))
        return Ends(head, file.read(SECTOR_BYTES), length)


def wrapping_of(ends: Ends) -> Wrapping | None:
    """Return what has to be taken off a file before its disk can be looked at."""
    for offset, magic, wrapping in _WRAPPINGS:
        if ends.head[offset : offset + len(magic)] == magic:
            return wrapping
    return None


def promised_format(name: str) -> str | None:
    """Return the image format that a file's name promises."""
    return PROMISES.get(PurePath(name).suffix.lower())


def plain_name(name: str) -> str:
    """Return a file's name without the endings that say how it is stored: disk.qcow2.gz is disk."""
    path = PurePath(name)
    while path.suffix.lower() in PACKED_ENDINGS and path.stem:
        path = path.with_name(path.stem)
    return path.stem


class VhdType(Enum):
    """Types of a VHD (Microsoft, "Virtual Hard Disk Image Format Specification", Disk Type)."""

    FIXED = 2
    DYNAMIC = 3
    DIFFERENCING = 4


_VHD_COOKIE = b"conectix"
_VHD_TYPE = struct.Struct(">I")
_VHD_TYPE_OFFSET = 60


def vhd_type(ends: Ends) -> VhdType | None:
    """Return the type of a VHD; None for what is none.

    All VHDs end in a footer. A fixed one has nothing else: the disk's bytes begin at the file's
    first one, so it looks like a raw image. The other two begin with a copy of the footer.
    """
    for place in (ends.head, ends.tail):
        if place.startswith(_VHD_COOKIE) and len(place) >= SECTOR_BYTES:
            (number,) = _VHD_TYPE.unpack_from(place, _VHD_TYPE_OFFSET)
            found = next((one for one in VhdType if one.value == number), None)
            # A footer without its copy in front makes sense on a fixed disk only.
            if found is not None and (place is ends.head or found is VhdType.FIXED):
                return found
    return None


def why_not_raw(ends: Ends, name: str) -> str | None:
    """Return why a file is not believed to be a raw disk and what to do instead; None if it is."""
    if ends.length_bytes == 0:
        return "it is empty"
    for offset, magic, what, advice in _NO_DISKS:
        if ends.head[offset : offset + len(magic)] == magic:
            return f"it is {what}, not a disk; {advice}"
    if ends.tail.startswith(_DMG_TRAILER):
        return "it is an Apple disk image (DMG); make a raw image of it: qemu-img convert -f dmg"
    if (promised := promised_format(name)) not in (None, "raw"):
        seen = _seen(ends)
        return f"its name promises {promised}, but it holds {seen}; get it again, or rename it"
    ending = PurePath(name).suffix.lower()
    if (packing := PACKED_ENDINGS.get(ending)) is not None:
        return (
            f"its name promises {packing}, but it holds {_seen(ends)}; get it again, or rename it"
        )
    if ends.head.lstrip().startswith(b"<") and _is_text(ends.head):
        return f"it holds {_seen(ends)}, not a disk; look for the image itself"
    if ends.length_bytes % SECTOR_BYTES:
        return (
            f"its length, {ends.length_bytes} bytes, is no multiple of {SECTOR_BYTES} as a disk's "
            "is; perhaps a part of it is missing"
        )
    return None


def _seen(ends: Ends) -> str:
    """What a person would say that the bytes are."""
    start = ends.head.lstrip()[:64].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if _is_text(ends.head):
        return "text"
    return "something else"


def _is_text(head: bytes) -> bool:
    """Whether the first sector is text."""
    return not head[:SECTOR_BYTES].translate(None, _TEXT)
