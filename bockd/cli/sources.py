"""Where an imported image comes from: a file, a URL, or standard input.

A file that others can write is compared with its state at opening, so that what is imported is what
was checked and hashed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click

from bockd.cli.convert import byte_bar
from bockd.cli.download import fetched, is_url, name_in_url
from bockd.cli.output import say
from bockd.cli.scratch import scratch
from bockd.cli.unpack import unpacked
from bockd.diskimage import Image, check_file, open_image
from bockd.diskimage.extents import data_ranges
from bockd.diskimage.kinds import plain_name
from bockd.errors import BockdError, ConflictError

STANDARD_INPUT = "-"

CHUNK_BYTES = 1 << 20

_ZEROS = bytes(256 << 10)
"""Small enough to stay in the processor's cache."""


@dataclass(slots=True)
class Source:
    """A file with what is imported."""

    title: str
    """What a person calls it: a file's name, or the end of a URL."""
    called: str
    """What stands in an error: a file's path, or the URL."""
    path: Path
    file_bytes: int
    _checksum: str | None = None
    fingerprint: tuple[int, ...] | None = field(default=None)
    """Of a file that others may write; see `fingerprint_of`."""

    def checksum(self) -> str:
        """Return the SHA-256 of the file. A terminal shows a bar the first time."""
        if self._checksum is None:
            self._checksum = hash_file(self.path, self.file_bytes, self.title)
        return self._checksum

    def refuse_changed(self) -> None:
        """Raise ConflictError when the file is not what was looked at before."""
        if self.fingerprint is not None and fingerprint_of(self.path) != self.fingerprint:
            raise ConflictError(f"{self.path} changed while it was imported")


def name_of_source(source: str, name: str | None) -> str:
    """Return the name for what is imported: the given one, or the file's without its endings."""
    if name is not None:
        return name
    if source == STANDARD_INPUT:
        raise click.UsageError("say --name: standard input has none")
    return plain_name(name_in_url(source) if is_url(source) else source)


@contextlib.contextmanager
def opened_source(source: str) -> Iterator[Source]:
    """Open what `source` names and yield it as a file: a URL is fetched, standard input is
    collected. Raises BockdError."""
    if source == STANDARD_INPUT:
        with collected() as opened, renamed(opened.path, opened.called):
            yield opened
    elif is_url(source):
        with fetched(source) as download, renamed(download.kept.path, source):
            yield Source(
                name_in_url(source) or source,
                source,
                download.kept.path,
                download.done_bytes,
                download.digest.hexdigest(),
            )
    else:
        path = Path(source).absolute()
        check_file(path)
        yield Source(path.name, str(path), path, length_of(path), None, fingerprint_of(path))


@contextlib.contextmanager
def collected() -> Iterator[Source]:
    """Yield a file with all that comes from standard input."""
    title = "standard input"
    digest = hashlib.sha256()
    with scratch(title) as kept:
        with byte_bar(f"reading {title}", None) as show:
            while chunk := sys.stdin.buffer.read(CHUNK_BYTES):
                kept.write(chunk)
                digest.update(chunk)
                if show is not None:
                    show(kept.done_bytes)
        kept.end()
        yield Source(title, title, kept.path, kept.done_bytes, digest.hexdigest())


@contextlib.contextmanager
def opened_image(source: Source, image_format: str | None) -> Iterator[Image]:
    """Yield the image that the file is, or that is packed in it; see `open_image`. With format raw
    the file is taken as it is."""
    if image_format == "raw":
        yield open_image(source.path, image_format, source.title)
        return
    with unpacked(source.path, source.title) as inner:
        called = source.called if inner.path == source.path else f"{source.called}: {inner.name}"
        with renamed(inner.path, called):
            yield open_image(inner.path, image_format, inner.name)


def note_dropped(image: Image, title: str) -> None:
    """Name on standard error what an import leaves out."""
    if image.snapshots:
        say(
            f"bock: note: the snapshots inside {title} are not imported, only its present state: "
            f"{', '.join(image.snapshots)}",
            err=True,
        )


@contextlib.contextmanager
def renamed(path: Path, called: str) -> Iterator[None]:
    """Replace `path` with the name `called` in errors that the body raises."""
    try:
        yield
    except BockdError as error:
        if str(path) not in str(error):
            raise
        raise type(error)(str(error).replace(str(path), called)) from error


def length_of(path: Path) -> int:
    """Return the length of a file or a block device in bytes."""
    with path.open("rb", buffering=0) as file:
        return file.seek(0, os.SEEK_END)


def fingerprint_of(path: Path) -> tuple[int, ...]:
    """Return device, inode, size and modification time: they change when somebody writes."""
    found = path.stat()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def hash_file(path: Path, length_bytes: int, title: str) -> str:
    """Return the SHA-256 of a file. Holes are hashed as zeros, without being read."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    done = 0
    with (
        path.open("rb", buffering=0) as file,
        byte_bar(f"reading {title}", length_bytes) as show,
    ):
        for begin, end in (*data_ranges(file.fileno(), length_bytes), (length_bytes, length_bytes)):
            while done < begin:
                count = min(begin - done, len(_ZEROS))
                digest.update(_ZEROS[:count] if count < len(_ZEROS) else _ZEROS)
                done += count
                if show is not None:
                    show(done)
            file.seek(begin)
            while done < end and (count := file.readinto(buffer[: end - done])):
                digest.update(buffer[:count])
                done += count
                if show is not None:
                    show(done)
    if done != length_bytes:
        raise ConflictError(f"{path} changed while it was read")
    return digest.hexdigest()
