"""How much address space the index is mapped with: one figure for all processes of a pool.

It stands in `index/map-size`, in bytes, if it is not the default. Whoever manages the pool writes
it; a process that maps less than others have filled could read nothing (MDB_MAP_RESIZED).
"""

from __future__ import annotations

from pathlib import Path

from bockd.durable import replace_file
from bockd.errors import DamagedError, from_os_error
from bockd.model import TIB

MAP_SIZE_BYTES = 1 * TIB
"""Address space only. Fixed and generous, because growing a map under another process fails
there; a pool's index needs about 1.3 KiB for each MiB written at random in the worst case."""

_FILE = "map-size"


def read_map_size(directory: Path) -> int:
    """Read the map size of the index in `directory`, in bytes. Raises DamagedError, OSError."""
    path = directory / _FILE
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return MAP_SIZE_BYTES
    if not text.strip().isdecimal():
        raise DamagedError(f"{path} does not hold a number of bytes; remove it for the default")
    return int(text)


def write_map_size(directory: Path, size_bytes: int) -> None:
    """Set the map size, in bytes, that all processes use from now on. Raises BockdError."""
    path = directory / _FILE
    try:
        if read_map_size(directory) == size_bytes:
            return
        replace_file(path, f"{size_bytes}\n".encode())
    except OSError as error:
        raise from_os_error(error, f"writing {path}") from error
