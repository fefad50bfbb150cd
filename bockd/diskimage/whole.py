"""Whether a file holds all that its own metadata says.

A reader of an image does not notice by itself that the file was cut short: what lies beyond the end
of the file reads as zeros, and qemu-img converts it with exit status 0. So three things are held
against the file's length: where the data of each run is (`qemu-img map`), the last cluster that a
qcow2's reference counts name, and what `qemu-img check` finds.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from pathlib import Path

import msgspec

from bockd.diskimage.extents import Mapped
from bockd.diskimage.kinds import SECTOR_BYTES
from bockd.diskimage.tools import run_limited, tool_message
from bockd.errors import DamagedError

CHECKED_FORMATS = frozenset({"qcow2", "vmdk", "vdi", "vhdx"})
"""Those that `qemu-img check` can look at."""

MAX_REFCOUNT_TABLE_BYTES = 8 << 20
"""QEMU's own limit."""

# docs/interop/qcow2.rst of QEMU: version, cluster_bits, refcount_table_offset and
# refcount_table_clusters, refcount_order.
_VERSION = struct.Struct(">I")
_TABLE = struct.Struct(">QI")
_OFFSET_MASK = ~0x1FF
_VERSION_AT, _CLUSTER_BITS_AT, _TABLE_AT, _ORDER_AT = 4, 20, 48, 96
_HEADER_BYTES = 104
_CLUSTER_BITS = range(9, 22)
_DEFAULT_ORDER = 4
_MAX_ORDER = 6

_CORRUPT, _LEAKS = 2, 3
"""Exit statuses of `qemu-img check`. Leaked space harms nobody who only reads."""


def check_extents(mapped: Iterable[Mapped], length_bytes: int) -> None:
    """Raise DamagedError when a run's data lies beyond the end of a file of `length_bytes`.

    Where compressed data ends is known to the sector only, to which QEMU fills the file up.
    """
    end = 0
    for run in mapped:
        if run.offset is not None:
            end = max(end, run.offset + run.length)
        elif run.data and length_bytes % SECTOR_BYTES:
            end = max(end, -(-length_bytes // SECTOR_BYTES) * SECTOR_BYTES)
    if end > length_bytes:
        raise DamagedError(
            f"it is cut short: it must have {end} bytes at least, and has {length_bytes}; "
            "get it again"
        )


def check_metadata(path: Path, image_format: str, *, dirty: bool, cpu_seconds: int) -> None:
    """Raise DamagedError when the image's own tables contradict each other or the file.

    A `dirty` qcow2 was left open by a virtual machine that died. Its reference counts are out of
    date, which a reader has no use for.
    """
    if image_format == "qcow2":
        check_last_cluster(path)
    if image_format not in CHECKED_FORMATS or dirty:
        return
    command = ["qemu-img", "check", "--output=json", "-f", image_format, str(path)]
    result = run_limited(command, cpu_seconds)
    if result.returncode in (0, _LEAKS):
        return
    if result.returncode == _CORRUPT:
        found = msgspec.json.decode(result.stdout or b"{}", type=dict[str, object])
        reason = f"qemu-img check finds {found.get('corruptions', 'some')} errors in it"
    elif result.returncode < 0:
        reason = "qemu-img check took too long"
    else:
        reason = f"qemu-img check says: {tool_message(result.stderr)}"
    raise DamagedError(
        f"it is damaged, or cut short: {reason}; get it again, or, if there is no other copy, "
        "see what is left of it: qemu-img convert -O qcow2 FILE NEW"
    )


def check_last_cluster(path: Path) -> None:
    """Raise DamagedError when a qcow2 file ends before the last cluster that is in use.

    `qemu-img check` does not see that: it looks at the clusters of the file as it is.
    """
    with path.open("rb", buffering=0) as file:
        length = file.seek(0, os.SEEK_END)
        used = _last_used_byte(file.fileno(), length)
    if used is not None and used >= length:
        raise DamagedError(
            f"it is cut short: byte {used} is in use, and it has {length} bytes; get it again (or, "
            "if a virtual machine that died left it so: qemu-img check -r leaks FILE)"
        )


def _last_used_byte(descriptor: int, length: int) -> int | None:
    """The first byte of the last cluster that is counted as in use; None when none is."""
    header = os.pread(descriptor, _HEADER_BYTES, 0).ljust(_HEADER_BYTES, b"\0")
    (version,) = _VERSION.unpack_from(header, _VERSION_AT)
    (cluster_bits,) = _VERSION.unpack_from(header, _CLUSTER_BITS_AT)
    table, clusters = _TABLE.unpack_from(header, _TABLE_AT)
    (order,) = _VERSION.unpack_from(header, _ORDER_AT) if version > 2 else (_DEFAULT_ORDER,)
    table_bytes = clusters << cluster_bits if cluster_bits in _CLUSTER_BITS else 0
    if not 0 < table_bytes <= MAX_REFCOUNT_TABLE_BYTES or order > _MAX_ORDER:
        raise DamagedError("its header is damaged")
    if table + table_bytes > length:
        return int(table + table_bytes - 1)
    cluster = 1 << cluster_bits
    counted = cluster * 8 >> order
    """Clusters that one block of reference counts is for."""
    entries = memoryview(os.pread(descriptor, table_bytes, table)).cast("B")
    for number in reversed(range(table_bytes // 8)):
        block = int.from_bytes(entries[number * 8 : number * 8 + 8], "big") & _OFFSET_MASK
        if not block:
            continue
        if block + cluster > -(-length // cluster) * cluster:
            return block
        counts = os.pread(descriptor, cluster, block).rstrip(b"\0")
        if counts:
            return int((number * counted + ((len(counts) - 1) * 8 >> order)) << cluster_bits)
    return None
