"""`bock image`: import, list, show, delete."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import click

from bockd.cli.client import ControlClient, connect
from bockd.cli.completion import complete_image
from bockd.cli.convert import (
    byte_bar,
    convert,
    ending_signals_held,
    ending_signals_interrupt,
)
from bockd.cli.download import CHUNK_BYTES, fetched, is_url, name_in_url
from bockd.cli.output import (
    confirm,
    format_time,
    json_option,
    print_json,
    print_record,
    print_table,
)
from bockd.cli.sizes import format_size
from bockd.cli.transfer import when_released
from bockd.control import ImageInfo, ImportInfo
from bockd.diskimage import IMPORT_FORMATS, Image, check_file, open_image
from bockd.errors import BockdError, ConflictError, NotFoundError
from bockd.model import NodeKind, check_image_name


@click.group()
def image() -> None:
    """Import, list and delete the images that volumes are made from.

    An IMAGE is named by its name or its id. A volume made from one is a copy of its block map: it
    is ready at once, and stays when the image is deleted.
    """


@dataclass(frozen=True, slots=True)
class Source:
    """A file whose content is known."""

    title: str
    """What a person calls it: a file's name, or the end of a URL."""
    path: Path
    file_bytes: int
    checksum: str
    fingerprint: tuple[int, ...] | None = None
    """Of a file that others may write; see `fingerprint`."""

    def refuse_changed(self) -> None:
        """Raise ConflictError when the checksum may not be that of what was read after it."""
        if self.fingerprint is not None and fingerprint(self.path) != self.fingerprint:
            raise ConflictError(f"{self.path} changed while it was imported")


@image.command("import")
@click.argument("source", metavar="FILE|URL")
@click.option("--name", help="The image's name. By default the file's, without its ending.")
@click.option(
    "--format",
    "image_format",
    type=click.Choice(IMPORT_FORMATS),
    help="The file's format. By default what its content shows; say raw to take it as it is.",
)
@json_option
def import_(source: str, name: str | None, image_format: str | None, as_json: bool) -> None:
    """Import a disk image, from a file or from an http or https URL.

    The same content is imported once: when it is an image already, that one is named and nothing
    is done. If the import fails or is interrupted, nothing of it is left behind.

    \b
    bock image import debian-12.qcow2
    bock image import https://example.org/debian-12.qcow2 --name debian-12
    """
    file_name = name_in_url(source) if is_url(source) else source
    name = check_image_name(PurePosixPath(file_name).stem if name is None else name)
    client = connect()
    client.list_images()  # before anything that takes long: is there a daemon?
    with ending_signals_interrupt():
        try:
            with opened_source(source) as opened:
                found, imported = import_source(client, opened, name, image_format)
        except KeyboardInterrupt as error:
            raise BockdError("interrupted; no image was left behind") from error
    if as_json:
        print_json({"image": found, "imported": imported})
        return
    what = "imported" if imported else "not imported again:"
    click.echo(
        f"{what} {file_name if is_url(source) else Path(source).name} ({found.disk_format}) "
        f"{'as' if imported else 'is'} image {found.id} ({found.name}), "
        f"{format_size(found.size_bytes)}"
    )


@contextlib.contextmanager
def opened_source(source: str) -> Iterator[Source]:
    """The file, fetched if it is a URL, with its checksum."""
    if is_url(source):
        with fetched(source) as download:
            try:
                yield Source(
                    name_in_url(source) or source,
                    download.path,
                    download.done_bytes,
                    download.digest.hexdigest(),
                )
            except BockdError as error:
                raise type(error)(str(error).replace(str(download.path), source)) from error
        return
    path = Path(source).absolute()
    check_file(path)
    before = fingerprint(path)
    file_bytes, checksum = read_through(path)
    yield Source(path.name, path, file_bytes, checksum, before)


def fingerprint(path: Path) -> tuple[int, ...]:
    """What a file that nobody writes keeps."""
    found = path.stat()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def read_through(path: Path) -> tuple[int, str]:
    """Length and SHA-256 of a file. A terminal shows a bar."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    done = 0
    with path.open("rb", buffering=0) as file:
        whole = file.seek(0, os.SEEK_END)
        file.seek(0)
        with byte_bar(f"reading {path.name}", whole) as show:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
                done += count
                if show is not None:
                    show(done)
    return done, digest.hexdigest()


def import_source(
    client: ControlClient, source: Source, name: str, image_format: str | None
) -> tuple[ImageInfo, bool]:
    """The image with this content, and whether it is new."""
    found = open_image(source.path, image_format)
    for known in client.list_images():
        same = (known.checksum, known.disk_format) == (source.checksum, found.format)
        if same and not known.fetched:
            return known, False
    return fill_new_image(client, source, found, name), True


def fill_new_image(client: ControlClient, source: Source, opened: Image, name: str) -> ImageInfo:
    """Import `opened`, or leave nothing behind."""
    begun: ImportInfo | None = None
    made: ImageInfo | None = None
    try:
        with ending_signals_held():
            begun = client.begin_import(
                name, opened.format, opened.volume_bytes, source.file_bytes, source.checksum
            )
        # The volume is new, so zeros need not be written: empty areas stay empty.
        convert(
            [
                *("-n", "--target-is-zero", "-W"),
                *("-f", opened.format, str(opened.path), "-O", "raw", begun.uri),
            ],
            title=f"importing {source.title}",
            size_bytes=opened.size_bytes,
        )
        source.refuse_changed()
        filled = begun.id
        with ending_signals_held():
            made = when_released(lambda: client.finish_import(filled))
    except BaseException as error:
        with ending_signals_held():
            if made is not None:  # interrupted at the last moment
                client.delete_image(made.id)
            elif begun is not None:
                cancel(client, begun, error)
        raise
    return made


def cancel(client: ControlClient, begun: ImportInfo, cause: BaseException) -> None:
    """Have the daemon forget a half import."""
    try:
        when_released(lambda: client.cancel_import(begun.id))
    except NotFoundError:
        return  # it is as it should be
    except BockdError as error:
        raise BockdError(
            f"{str(cause) or 'interrupted'}; the half import could not be cancelled ({error}); "
            "the daemon gives it up by itself"
        ) from cause


@image.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List images."""
    images = connect().list_images()
    if as_json:
        print_json(images)
        return
    print_table(
        ("ID", "NAME", "SIZE>", "FORMAT", "FILE>", "IMPORTED"),
        [
            (
                found.id,
                found.name,
                format_size(found.size_bytes),
                found.disk_format,
                format_size(found.file_bytes),
                format_time(found.created_at),
            )
            for found in images
        ],
    )


@image.command()
@click.argument("image", shell_complete=complete_image)
@json_option
def show(image: str, as_json: bool) -> None:
    """Show one image, with the space it takes."""
    client = connect()
    found = client.show_image(image)
    space = client.space(NodeKind.SNAPSHOT, str(found.snapshot))
    if as_json:
        print_json({"image": found, "space": space})
        return
    print_record(
        [
            ("id", found.id),
            ("name", found.name),
            ("size", f"{format_size(found.size_bytes)} ({found.size_bytes} bytes)"),
            ("smallest volume", f"{found.min_size_gib} GiB"),
            ("format", found.disk_format),
            ("file", f"{format_size(found.file_bytes)} ({found.file_bytes} bytes)"),
            ("sha256", found.checksum),
            ("imported", format_time(found.created_at)),
            ("uri", found.uri),
            ("exclusive", format_size(space.exclusive_bytes)),
            ("shared", format_size(space.shared_bytes)),
        ]
    )


@image.command()
@click.argument("image", shell_complete=complete_image)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def delete(image: str, yes: bool, as_json: bool) -> None:
    """Delete an image; volumes made from it stay.

    Asks first when run at a terminal. Refused while a client reads it.
    """
    client = connect()
    found = client.show_image(image)
    confirm(f"Delete image {found.id} ({found.name})?", yes=yes)
    client.delete_image(found.id)
    if as_json:
        print_json({"deleted": found})
        return
    click.echo(f"deleted image {found.id} ({found.name})")
