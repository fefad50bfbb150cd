"""Making a pool, which happens on purpose only.

A daemon that finds no pool where it looks for one may look at an unmounted mount point: with a new
and empty pool there its clients would believe that all volumes are gone. So it makes one by itself
only where there is no directory yet, or in its default directory (which a service manager may have
made); everywhere else `bockd init` does (`make_pool`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from bockd.directories import FILE_SYSTEMS_OWN
from bockd.drivers.local.format.layout import Layout
from bockd.drivers.local.registry import Registry
from bockd.errors import ConflictError, DamagedError, InvalidRequestError, from_os_error
from bockd.runtime.steps import Background

FSTAB = Path("/etc/fstab")

_OF_A_POOL = ("layers", "journal", "ballast", "credentials.json")
"""What is made after the index: with one of these and no index, there was a pool."""

_OF_AN_INTERRUPTED_START = frozenset({"locks", "index"})
"""What is made before the index."""


def has_pool(root: Path) -> bool:
    """Return whether there is an index. Raises OSError, but not for a path that does not exist."""
    try:
        return os.stat(Layout(root).index_data).st_size > 0
    except (FileNotFoundError, NotADirectoryError):
        return False


def check_start(root: Path, *, is_default: bool) -> None:
    """Return if a daemon may serve `root`: there is a pool, or one may be made. Blocks.

    Raises:
        DamagedError: there was a pool, and its index is gone.
        InvalidRequestError: a pool there has to be made on purpose.
        DeniedError, DeviceError: the directory cannot be looked at.
    """
    try:
        if has_pool(root):
            return
        _refuse_remains(root)
        _refuse_unmounted(root)
        if is_default or not os.path.lexists(root):
            return
        if _OF_AN_INTERRUPTED_START & set(os.listdir(root)):
            return
        content = _content(root)
    except OSError as error:
        raise from_os_error(error, f"looking into {root}") from error
    what = "is empty" if not content else f"holds no pool (but {sorted(content)[0]!r})"
    advice = "" if content else f"; otherwise 'bockd init {root}' makes a new pool in it"
    raise InvalidRequestError(
        f"the data directory {root} {what}: if a file system belongs there, mount it first{advice}"
    )


def make_pool(root: Path) -> None:
    """Make a new pool in a directory that is absent or empty. Blocks.

    Raises:
        ConflictError: there is one already.
        InvalidRequestError: the directory is not empty.
        DamagedError: there was a pool, and its index is gone.
        InUseError, DeniedError, NoSpaceError, DeviceError.
    """
    try:
        if has_pool(root):
            raise ConflictError(f"{root} has a pool already; 'bockd serve' serves it")
        _refuse_remains(root)
        content = _content(root) if os.path.lexists(root) else set()
    except OSError as error:
        raise from_os_error(error, f"looking into {root}") from error
    if content:
        raise InvalidRequestError(
            f"{root} is not empty (there is {sorted(content)[0]!r}): give an empty directory, or "
            "one that does not exist yet"
        )
    Registry.open(root, Background().spawn).release()


def _content(root: Path) -> set[str]:
    """What is in a directory that neither a new file system nor an interrupted start has there."""
    return set(os.listdir(root)) - {FILE_SYSTEMS_OWN} - _OF_AN_INTERRUPTED_START


def _refuse_remains(root: Path) -> None:
    remains = next((name for name in _OF_A_POOL if os.path.lexists(root / name)), None)
    if remains is not None:
        raise DamagedError(
            f"there was a pool in {root}, which {remains!r} is left of, but "
            f"{Layout(root).index_data} is missing or empty: restore the index from a backup, or "
            "choose another data directory"
        )


def _refuse_unmounted(root: Path) -> None:
    """Refuse a place where /etc/fstab wants another file system to be."""
    resolved = Path(os.path.realpath(root))
    for wanted in _mount_points():
        if (wanted == resolved or wanted in resolved.parents) and not os.path.ismount(wanted):
            raise InvalidRequestError(
                f"there is no pool in {root}, and nothing is mounted at {wanted}, which {FSTAB} "
                f"names: mount it first; if a new pool belongs there all the same, "
                f"'bockd init {root}' makes it"
            )


def _mount_points() -> Iterator[Path]:
    """Of /etc/fstab (fstab(5)), which writes blanks in octal."""
    try:
        text = FSTAB.read_text(errors="surrogateescape")
    except OSError:
        return
    for line in text.splitlines():
        fields = line.split()
        if len(fields) > 1 and not line.lstrip().startswith("#") and fields[1].startswith("/"):
            path = fields[1].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
            yield Path(os.path.realpath(path))
