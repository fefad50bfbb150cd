"""The file system itself: two directories of files, as pyfuse3 asks for them.

    volumes/<name or id>     read and write
    snapshots/<name or id>   read only

Nothing is made, renamed, removed or truncated here: `bock` and the APIs do that. Names and
attributes are never cached by the kernel (timeouts of 0), because they change elsewhere.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from bisect import bisect_right
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, StatvfsData

from bockd.fuse.delays import Delays
from bockd.fuse.errors import fuse_errno
from bockd.fuse.files import OpenFile
from bockd.fuse.inodes import (
    DIRECTORIES,
    DIRECTORY_NAMES,
    KIND_OF_DIRECTORY,
    ROOT,
    inode_of,
    node_of,
)
from bockd.fuse.nodes import Node, NodeTable
from bockd.model import BLOCK_SIZE, MAX_NAME_BYTES, NodeKind
from bockd.runtime.steprunner import StepRunner

P = ParamSpec("P")
T = TypeVar("T")

_NANOSECONDS = 1_000_000_000
_SECTOR_BYTES = 512  # the unit of st_blocks


def _answered(handler: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Whatever a handler raises is answered with an errno: one request's trouble never ends the
    view."""

    @wraps(handler)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(*args, **kwargs)
        except FUSEError:
            raise
        except Exception as error:
            raise FUSEError(fuse_errno(error)) from error

    return wrapper


@dataclass
class _OpenDirectory:
    """What a reader of a directory has been shown: (name, attributes), by inode number."""

    inode: int
    entries: list[tuple[bytes, EntryAttributes]]


class View(pyfuse3.Operations):
    """See the module's docstring. What it does not define, the kernel is told not to ask for."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, nodes: NodeTable, runner: StepRunner) -> None:
        super().__init__()
        self._nodes = nodes
        self._runner = runner
        self._delays = Delays()
        self._files: dict[int, OpenFile] = {}
        self._directories: dict[int, _OpenDirectory] = {}
        self._handles = itertools.count(1)
        self._owner = os.geteuid(), os.getegid()

    # -- open files, for whoever ends the view -------------------------------------------------

    def open_names(self) -> list[str]:
        """Return the names of the exports that have files open, each once."""
        return sorted({file.export.info.name for file in self._files.values()})

    async def close_files(self) -> None:
        """Release all open files: the kernel will send no more releases."""
        files, self._files = self._files, {}
        for file in files.values():
            await file.export.close()

    # -- looking ---------------------------------------------------------------------------------

    @_answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if parent_inode == ROOT and name in DIRECTORY_NAMES:
            return self._directory(DIRECTORIES[DIRECTORY_NAMES[name]])
        if parent_inode not in KIND_OF_DIRECTORY:
            raise FUSEError(errno.ENOENT)
        try:
            ref = name.decode()
        except UnicodeDecodeError:
            raise FUSEError(errno.ENOENT) from None
        return self._file(await self._nodes.find(KIND_OF_DIRECTORY[parent_inode], ref))

    @_answered
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        if inode == ROOT or inode in KIND_OF_DIRECTORY:
            return self._directory(inode)
        return self._file(await self._nodes.show(*node_of(inode)))

    def _directory(self, inode: int) -> EntryAttributes:
        entry = self._entry(inode, stat.S_IFDIR | stat.S_IRUSR | stat.S_IXUSR)
        entry.st_nlink = 2 + len(DIRECTORIES) * (inode == ROOT)
        return entry

    def _file(self, node: Node) -> EntryAttributes:
        writable = stat.S_IWUSR * (node.kind is NodeKind.VOLUME)
        entry = self._entry(inode_of(node.kind, node.id), stat.S_IFREG | stat.S_IRUSR | writable)
        entry.st_size = node.size_bytes
        entry.st_blksize = BLOCK_SIZE
        entry.st_blocks = -(-node.allocated_bytes // _SECTOR_BYTES)
        entry.st_mtime_ns = entry.st_atime_ns = int(node.modified_at * _NANOSECONDS)
        entry.st_ctime_ns = entry.st_mtime_ns
        return entry

    def _entry(self, inode: int, mode: int) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = mode
        entry.st_uid, entry.st_gid = self._owner
        entry.entry_timeout = entry.attr_timeout = 0
        return entry

    @_answered
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        handle = next(self._handles)
        self._directories[handle] = _OpenDirectory(inode, [])
        return handle

    @_answered
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        # The kernel asks piece by piece. All is looked up for the first one: to do so for each
        # would take the square of the time. Positions are inode numbers, which stay right while
        # nodes come and go.
        directory = self._directories[fh]
        if start_id == 0:
            directory.entries = await self._entries(directory.inode)
        first = bisect_right(directory.entries, start_id, key=lambda found: found[1].st_ino)
        for name, entry in itertools.islice(directory.entries, first, None):
            if not pyfuse3.readdir_reply(token, name, entry, entry.st_ino):
                return

    async def releasedir(self, fh: int) -> None:
        self._directories.pop(fh, None)

    async def _entries(self, directory: int) -> list[tuple[bytes, EntryAttributes]]:
        """What a directory holds, by inode number."""
        if directory == ROOT:
            return [
                (name, self._directory(DIRECTORIES[kind])) for name, kind in DIRECTORY_NAMES.items()
            ]
        nodes = await self._nodes.list_nodes(KIND_OF_DIRECTORY[directory])
        return [(node.file_name.encode(), self._file(node)) for node in nodes]

    @_answered
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        below = await self._nodes.space()
        space = StatvfsData()
        space.f_bsize = space.f_frsize = BLOCK_SIZE
        space.f_blocks = below.f_blocks * below.f_frsize // BLOCK_SIZE
        space.f_bfree = below.f_bfree * below.f_frsize // BLOCK_SIZE
        space.f_bavail = below.f_bavail * below.f_frsize // BLOCK_SIZE
        space.f_namemax = MAX_NAME_BYTES
        return space

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Do nothing: no state is kept for an inode."""

    # -- files -----------------------------------------------------------------------------------

    @_answered
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        kind, node = node_of(inode)
        if kind is NodeKind.SNAPSHOT and flags & os.O_ACCMODE != os.O_RDONLY:
            raise FUSEError(errno.EROFS)
        if flags & os.O_TRUNC:
            raise FUSEError(errno.EPERM)
        export = await self._nodes.open(kind, node)
        handle = next(self._handles)
        statistics, gate = self._nodes.statistics(export), self._nodes.gate(export)
        self._files[handle] = OpenFile(export, self._runner, statistics, gate, self._delays, flags)
        return FileInfo(fh=handle, direct_io=True, keep_cache=False)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        file = self._files[fh]
        data = file.read_now(off, size)
        if data is None:
            data = await file.read(off, size)
        return data  # type: ignore[return-value] # any buffer does

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        file = self._files[fh]
        count = file.write_now(off, buf)
        return await file.write(off, buf) if count is None else count

    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._files[fh].sync()

    async def release(self, fh: int) -> None:
        file = self._files.pop(fh, None)
        if file is not None:
            await file.export.close()

    @_answered
    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Allow only a truncation to the size that the file already has. Any other change fails
        with EPERM."""
        now = await self.getattr(inode, ctx)
        others = (
            fields.update_mode,
            fields.update_uid,
            fields.update_gid,
            fields.update_atime,
            fields.update_mtime,
        )
        if any(others) or (fields.update_size and attr.st_size != now.st_size):
            raise FUSEError(errno.EPERM)
        return now

    # -- what is not done here -------------------------------------------------------------------

    async def _refuse(self, *_: Any, **__: Any) -> Any:
        raise FUSEError(errno.EPERM)

    create = mknod = mkdir = unlink = rmdir = symlink = rename = link = _refuse
