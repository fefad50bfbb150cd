"""The disk of the power-cut laboratory with faults: a chosen change of it fails, or all from there
on, or it is full from there on.

    python -m tests.crash.faults.filesystem MOUNTPOINT

Each write, sync, truncation, punch, zeroing, creation, link, rename and removal in a life is a
*position*, numbered from 1. Orders come as the extended attribute `user.fault` of the root, set to
"LIFE AT HOW ERRNO" (HOW: once, lasting or full; AT 0: nothing fails); it reads as how many have
failed. `user.positions` reads as the kinds of positions, one a line, "KIND OF", from the one that
was set. Of a file, `user.unreadable` is set to "OFFSET LENGTH": reads of it fail with EIO, until
that is "0 0".

After a failed sync the file's unsynced pages are gone and the next sync succeeds, as Linux does it.
"""

from __future__ import annotations

import errno
import sys

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, StatvfsData

from tests.crash.powercut.disk import PAGE_BYTES, Directory, File
from tests.crash.powercut.filesystem import PowerCutFileSystem, pages_of, serve

META_BYTES = 2 * PAGE_BYTES
"""LMDB's two meta pages begin its file; writing one is what commits."""

_REPLY_LINES = 1000


class FaultyFileSystem(PowerCutFileSystem):
    """See the module's docstring."""

    def __init__(self) -> None:
        super().__init__()
        self._life = ""
        self._at = 0
        self._how = "once"
        self._errno = 0
        self._kinds: list[str] = []
        self._failed = 0
        self._free_pages: int | None = None
        """What a full disk has left; None while it is not full."""
        self._labels: dict[int, str] = {}
        self._shown = 0
        self._unreadable: dict[int, range] = {}

    # -- orders ------------------------------------------------------------------------------

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        if name == b"user.fault":
            self._life, at, self._how, number = value.decode().split(" ")
            self._at, self._errno = int(at), int(number)
            self._kinds, self._failed, self._free_pages = [], 0, None
        elif name == b"user.positions":
            self._shown = int(value)
        elif name == b"user.unreadable":
            offset, length = map(int, value.split())
            self._unreadable[inode] = range(offset, offset + length)
            await self._invalidate(self._file(inode))
        elif name == b"user.punch":
            file = self._file(inode)
            self._position("punch", file)
            before = file.live.allocated
            await super().setxattr(inode, name, value, ctx)
            self._freed(before - file.live.allocated)
            await self._invalidate(file)
        elif name == b"user.zero":
            file = self._file(inode)
            self._position("zero", file)
            self._takes(file.live.takes(pages_of(*value.decode().split(" "))))
            await super().setxattr(inode, name, value, ctx)
            await self._invalidate(file)
        else:
            await super().setxattr(inode, name, value, ctx)

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        if name == b"user.fault":
            return str(self._failed).encode()
        if name == b"user.positions":
            return "\n".join(self._kinds[self._shown : self._shown + _REPLY_LINES]).encode()
        return await super().getxattr(inode, name, ctx)

    # -- failing -----------------------------------------------------------------------------

    def _position(self, kind: str, node: File | Directory, of: str | None = None) -> None:
        """Count a position; FUSEError where the fault is. Nothing has been done yet."""
        if node.life != self._life:
            return
        self._kinds.append(f"{kind} {of or self._label(node)}")
        number = len(self._kinds)
        if not self._at or number < self._at:
            return
        if self._how == "full":
            if number == self._at:
                self._free_pages = 0
        elif self._how == "lasting" or number == self._at:
            self._failed += 1
            raise FUSEError(self._errno)

    def _label(self, node: File | Directory) -> str:
        """What it is, without what differs from file to file."""
        return self._labels.get(node.number, "root")

    def _name(self, parent: Directory, name: bytes, node: File | Directory) -> str:
        """Give a new node its label: what it is in."""
        own = name.decode()
        where = self._label(parent)
        label = own if where in ("root", "") or own.startswith(("data", "lock")) else where
        if own.endswith(".new"):
            label = "new-journal"
        if own.endswith(".spare"):
            label = "spare-journal"
        self._labels[node.number] = label
        return label

    def _takes(self, pages: int) -> None:
        """Pages of the full disk; ENOSPC when it has not so many."""
        if self._free_pages is None or pages <= 0:
            return
        if pages > self._free_pages:
            self._failed += 1
            raise FUSEError(errno.ENOSPC)
        self._free_pages -= pages

    def _freed(self, pages: int) -> None:
        if self._free_pages is not None:
            self._free_pages += pages

    async def _lose(self, file: File) -> None:
        """What was not synced is gone: a failed sync marks the pages clean."""
        kept = file.durable.copy()
        kept.size = file.live.size
        file.live, file.pending = kept, []
        await self._invalidate(file)

    async def _invalidate(self, file: File) -> None:
        """Let the kernel read it anew. In a thread: the kernel may want something of us first."""
        await trio.to_thread.run_sync(pyfuse3.invalidate_inode, file.number)

    # -- positions ---------------------------------------------------------------------------

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        space = await super().statfs(ctx)
        if self._free_pages is not None:
            space.f_bfree = space.f_bavail = self._free_pages
        return space

    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        parent = self._directory(parent_inode)
        self._position("mkdir", parent, name.decode())
        self._takes(1)
        made = await super().mkdir(parent_inode, name, mode, ctx)
        self._name(parent, name, self.disk.nodes[made.st_ino])
        return made

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        parent = self._directory(parent_inode)
        self._position("create", parent)
        info, made = await super().create(parent_inode, name, mode, flags, ctx)
        self._name(parent, name, self.disk.nodes[made.st_ino])
        return info, made

    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        self._position("link", self._directory(new_parent_inode))
        return await super().link(inode, new_parent_inode, new_name, ctx)

    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        parent = self._directory(parent_inode)
        node = parent.live[name]
        self._position("unlink", node)
        await super().unlink(parent_inode, name, ctx)
        if isinstance(node, File):
            self._freed(node.live.allocated)

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        parent = self._directory(parent_inode_old)
        node = parent.live[name_old]
        self._position("rename", node)
        await super().rename(parent_inode_old, name_old, parent_inode_new, name_new, flags, ctx)
        self._name(parent, name_new, node)

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        self._position("syncdir", self._directory(fh))
        await super().fsyncdir(fh, datasync)

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        file = self._file(inode)
        pages = file.live.allocated
        info = await super().open(inode, flags, ctx)
        self._freed(pages - file.live.allocated)
        return info

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        file, _ = self.opened[fh]
        if not file.volatile:  # the kernel writes that one back when it likes
            label = self._label(file)
            meta = label == "data.mdb" and off < META_BYTES
            self._position("write", file, "data.mdb-meta" if meta else None)
            touched = range(off // PAGE_BYTES, (off + len(buf) - 1) // PAGE_BYTES + 1)
            self._takes(file.live.takes(touched))
        return await super().write(fh, off, buf)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        bad = self._unreadable.get(self.opened[fh][0].number, range(0))
        if off < bad.stop and bad.start < off + size:
            raise FUSEError(errno.EIO)
        return await super().read(fh, off, size)

    async def fsync(self, fh: int, datasync: bool) -> None:
        file, through = self.opened[fh]
        if not file.volatile:
            try:
                self._position("sync", file, "data.mdb-meta" if through else None)
            except FUSEError:
                if not through:
                    await self._lose(file)
                raise
        await super().fsync(fh, datasync)

    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        if fields.update_size:
            self._position("truncate", self._file(inode))
        return await super().setattr(inode, attr, fields, fh, ctx)


if __name__ == "__main__":
    trio.run(serve, sys.argv[1], FaultyFileSystem())
