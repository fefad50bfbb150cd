"""A disk with a power cord: what programs see, what would survive, and what may be left.

The model is POSIX, read strictly, and weaker than any file system in use:

* A file's bytes, holes and size are durable when an fsync or fdatasync of the file has returned (a
  write through an O_DSYNC descriptor: those bytes, when it has returned). Of what was changed
  since, any part may be there, each sector of 512 bytes by itself, whatever came first.
* A directory's entries are durable when an fsync of the directory has returned, and only then: an
  fsync of the file does not name it. Of what was changed since, any part may be there, whatever
  came first; a rename is there as a whole or not at all.
* A punched or zeroed page may still be there after the cut, in whole.

What is durable is never damaged: a write never harms its neighbour's sectors.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

PAGE_BYTES = 4096
SECTOR_BYTES = 512


@dataclass
class Content:
    """The bytes of a file; a page that is absent is a hole, or allocated and not written."""

    pages: dict[int, bytes] = field(default_factory=dict)
    size: int = 0
    unwritten: set[int] = field(default_factory=set)

    @property
    def allocated(self) -> int:
        """Pages that take space."""
        return len(self.pages) + len(self.unwritten)

    def takes(self, pages: range) -> int:
        """How many of some pages take no space yet."""
        return sum(page not in self.pages and page not in self.unwritten for page in pages)

    def copy(self) -> Content:
        return Content(dict(self.pages), self.size, set(self.unwritten))

    def read(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self.size)
        if offset >= end:
            return b""
        first, last = offset // PAGE_BYTES, (end - 1) // PAGE_BYTES
        hole = bytes(PAGE_BYTES)
        whole = b"".join(self.pages.get(page, hole) for page in range(first, last + 1))
        start = offset - first * PAGE_BYTES
        return whole[start : start + end - offset]

    def write(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        at = offset
        while at < end:
            page, inside = divmod(at, PAGE_BYTES)
            count = min(PAGE_BYTES - inside, end - at)
            piece = data[at - offset : at - offset + count]
            if count < PAGE_BYTES:
                old = self.pages.get(page, bytes(PAGE_BYTES))
                piece = old[:inside] + piece + old[inside + count :]
            self.pages[page] = piece
            self.unwritten.discard(page)
            at += count
        self.size = max(self.size, end)

    def resize(self, size: int) -> None:
        if size < self.size:
            self.pages = {p: data for p, data in self.pages.items() if p * PAGE_BYTES < size}
            self.unwritten = {page for page in self.unwritten if page * PAGE_BYTES < size}
            page, inside = divmod(size, PAGE_BYTES)
            if page in self.pages:
                self.pages[page] = self.pages[page][:inside].ljust(PAGE_BYTES, b"\0")
        self.size = size

    def punch(self, page: int) -> None:
        self.pages.pop(page, None)
        self.unwritten.discard(page)

    def zero(self, page: int) -> None:
        self.pages.pop(page, None)
        self.unwritten.add(page)

    def ranges(self, *, unwritten: bool = False) -> Iterator[tuple[int, int]]:
        """What is written, or allocated and not written, as (start, end)."""
        pages = sorted(self.unwritten if unwritten else self.pages)
        while pages:
            run = list(
                itertools.takewhile(lambda p: p[0] + pages[0] == p[1], enumerate(pages))  # noqa: B023
            )
            yield pages[0] * PAGE_BYTES, (run[-1][1] + 1) * PAGE_BYTES
            pages = pages[len(run) :]


Change = Callable[[Content], None]


class File:
    """A file, and what of it is durable."""

    def __init__(self, number: int, life: str, content: Content, *, volatile: bool = False) -> None:
        self.number = number
        self.life = life
        self.live = content
        self.durable = content.copy()
        self.pending: list[Change] = []
        self.volatile = volatile
        """Nothing of it survives: what only means something to running processes."""

    def write(self, offset: int, data: bytes) -> list[Change]:
        """The changes that a write consists of: one for each sector that it touches."""
        cuts = range((offset // SECTOR_BYTES + 1) * SECTOR_BYTES, offset + len(data), SECTOR_BYTES)
        bounds = [offset, *cuts, offset + len(data)]
        return [
            lambda content, at=low, piece=data[low - offset : high - offset]: content.write(  # type: ignore[misc]
                at, piece
            )
            for low, high in itertools.pairwise(bounds)
        ]

    def sync(self) -> None:
        self.apply(self.durable, self.pending)
        self.pending = []

    @staticmethod
    def apply(content: Content, changes: list[Change]) -> None:
        for change in changes:
            change(content)

    def after_cut(self, chance: random.Random) -> Content:
        """What may be left of it."""
        content = self.durable.copy()
        self.apply(content, _some(self.pending, chance))
        return content


class Directory:
    """A directory, and which of its entries are durable."""

    def __init__(self, number: int, life: str) -> None:
        self.number = number
        self.life = life
        self.live: dict[bytes, File | Directory] = {}
        self.durable: dict[bytes, File | Directory] = {}
        self.pending: list[dict[bytes, File | Directory | None]] = []

    def change(self, entries: dict[bytes, File | Directory | None], *, logged: bool) -> None:
        """Add and remove entries, at once."""
        _rename(self.live, entries)
        if logged:
            self.pending.append(entries)

    def sync(self) -> None:
        for entries in self.pending:
            _rename(self.durable, entries)
        self.pending = []

    def after_cut(self, chance: random.Random) -> dict[bytes, File | Directory]:
        """The entries that may be left."""
        left = dict(self.durable)
        for entries in _some(self.pending, chance):
            _rename(left, entries)
        return left


def _rename(
    directory: dict[bytes, File | Directory], entries: dict[bytes, File | Directory | None]
) -> None:
    for name, node in entries.items():
        if node is None:
            directory.pop(name, None)
        else:
            directory[name] = node


def _some(pending: list[T], chance: random.Random) -> list[T]:
    """Which of the changes since the last sync have reached the disk."""
    how = chance.random()
    if how < 0.25:
        return []
    if how < 0.5:
        return pending
    if how < 0.65:  # in order, up to some moment
        return pending[: chance.randrange(len(pending) + 1)]
    if how < 0.75:  # the newest first
        return pending[chance.randrange(len(pending) + 1) :]
    share = chance.choice((0.1, 0.5, 0.9))
    return [change for change in pending if chance.random() < share]


class Disk:
    """All pools on the disk, each in a directory of its own: its lives."""

    def __init__(self, root_number: int) -> None:
        self.root = Directory(root_number, "")
        self.nodes: dict[int, File | Directory] = {root_number: self.root}
        self._numbers = itertools.count(root_number + 1)
        self.armed: str | None = None
        self.after = 0
        self.beyond: int | None = None
        self.counted = 0
        """Changes of the armed life since it was armed."""
        self.cut = False

    # -- the power ---------------------------------------------------------------------------

    def arm(self, life: str, after: int, beyond: int | None = None) -> None:
        """The power of a life fails at its change number `after` (0: never); or, with `beyond`, so
        many changes beyond the first sync that follows."""
        self.armed, self.after, self.beyond = life, after, beyond
        self.counted, self.cut = 0, False

    def passes(self, node: File | Directory, *, is_sync: bool = False) -> bool:
        """Count a change of a node, or a sync; True while there is power after it."""
        if node.life != self.armed or (isinstance(node, File) and node.volatile):
            return True
        self.counted += 1
        if self.after and self.counted >= self.after:
            if self.beyond is None:
                self.cut = True
            elif is_sync:
                self.after, self.beyond = self.counted + self.beyond + 1, None
        return not self.cut

    def powered(self, node: File | Directory) -> bool:
        """Changes of it still count."""
        return not (self.cut and node.life == self.armed)

    def restore(self, life: str, name: str, seed: str) -> None:
        """Make a new life of what may be left of another one."""
        chance = random.Random(seed)
        source = self.root.live[life.encode()]
        assert isinstance(source, Directory)
        copies: dict[int, File | Directory] = {}
        self.root.live[name.encode()] = self._restored(source, name, chance, copies)

    def _restored(
        self,
        node: File | Directory,
        life: str,
        chance: random.Random,
        copies: dict[int, File | Directory],
    ) -> File | Directory:
        if node.number in copies:
            return copies[node.number]
        copy: File | Directory
        if isinstance(node, File):
            content = Content() if node.volatile else node.after_cut(chance)
            copy = self.new_file(life, content, volatile=node.volatile)
            copies[node.number] = copy
            return copy
        copy = self.new_directory(life)
        copies[node.number] = copy
        for name, child in sorted(node.after_cut(chance).items()):
            copy.live[name] = self._restored(child, life, chance, copies)
        copy.durable = dict(copy.live)
        return copy

    def drop(self, life: str) -> None:
        """Forget all of it."""
        self.root.live.pop(life.encode(), None)
        self.nodes = {n: node for n, node in self.nodes.items() if node.life != life}

    # -- nodes -------------------------------------------------------------------------------

    def new_file(self, life: str, content: Content, *, volatile: bool) -> File:
        file = File(next(self._numbers), life, content, volatile=volatile)
        self.nodes[file.number] = file
        return file

    def new_directory(self, life: str) -> Directory:
        directory = Directory(next(self._numbers), life)
        self.nodes[directory.number] = directory
        return directory

    # -- changes -----------------------------------------------------------------------------

    def change_file(self, file: File, changes: list[Change], *, synced: bool = False) -> None:
        """Change a file; the power may fail while it is on its way to the disk."""
        file.apply(file.live, changes)
        if file.volatile or not self.powered(file):
            return
        if synced and self.passes(file, is_sync=True):
            file.apply(file.durable, changes)
            file.pending.extend(changes)  # what is older must not come over it
        else:
            file.pending.extend(changes)
            if not synced:
                self.passes(file)

    def change_directory(
        self, directory: Directory, entries: dict[bytes, File | Directory | None]
    ) -> None:
        logged = self.powered(directory)
        directory.change(entries, logged=logged)
        if logged:
            self.passes(directory)

    def sync(self, node: File | Directory) -> None:
        """An fsync: done unless the power fails before its end."""
        if self.powered(node) and self.passes(node, is_sync=True):
            node.sync()
