"""`bock volume import`, `bock volume export` and `bock snapshot export`: disk images in and out.

An import that fails or is interrupted leaves no volume; an export that does leaves no file, and
never half of one under the name that was asked for.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import click

from bockd.cli.completion import complete_snapshot, complete_volume
from bockd.cli.convert import (
    convert,
    ending_signals_held,
    ending_signals_interrupt,
    flush_export,
)
from bockd.cli.output import json_option, report
from bockd.cli.records import Snapshot, Volume
from bockd.cli.sizes import format_size
from bockd.cli.sources import Source, name_of_source, note_dropped, opened_image, opened_source
from bockd.cli.storage import StorageClient, connect
from bockd.cli.volume import where_to_connect
from bockd.diskimage import IMPORT_FORMATS, Image
from bockd.errors import BockdError, ConflictError, InUseError, InvalidStateError, NotSupportedError

T = TypeVar("T")

EXPORT_FORMATS = ("raw", "qcow2")

RELEASE_TIMEOUT_SECONDS = 10.0
"""For the daemon to notice that a killed qemu-img has gone, before its volume can be deleted."""

RELEASE_POLL_SECONDS = 0.05


@click.command("import")
@click.argument("image", metavar="FILE|URL|-")
@click.option("--name", help="The volume's name. By default the file's, without its ending.")
@click.option(
    "--format",
    "image_format",
    type=click.Choice(IMPORT_FORMATS),
    help="The image's format. By default what its content shows; say raw to take it as it is.",
)
@json_option
def import_image(image: str, name: str | None, image_format: str | None, as_json: bool) -> None:
    """Make a volume from a disk image: a file, an http or https URL, or - for standard input.

    What is compressed (gzip, xz, zstd, bzip2) is unpacked, and the disk of an OVA taken out. Empty
    areas of the image take no space. The size is rounded up to 4 KiB, and to 1 MiB at least. If the
    import fails or is interrupted, the volume is deleted again.

    \b
    bock volume import debian-12.qcow2 --name web
    bock volume import /dev/sdb --name old-disk --format raw
    """
    name = name_of_source(image, name)
    client = connect()
    client.list_volumes(name)  # before anything that takes long: is there a daemon?
    with ending_signals_interrupt():
        try:
            with opened_source(image) as source, opened_image(source, image_format) as opened:
                note_dropped(opened, source.title)
                filled = fill_new_volume(client, source, opened, name)
        except KeyboardInterrupt as error:
            raise BockdError("interrupted; no volume was left behind") from error
    report(
        filled,
        f"imported {source.title} ({opened.format}) as volume {filled.id} ({filled.name}), "
        f"{format_size(filled.size_bytes)}",
        *where_to_connect(filled),
        as_json=as_json,
    )


def local_uri(found: Volume | Snapshot) -> str:
    """Where the data moves. NotSupportedError on another machine than the daemon's."""
    if found.uri is None:
        raise NotSupportedError(
            "data moves over the daemon's NBD socket, which cannot be used from here: run this on "
            "the daemon's machine, as the user who runs it"
        )
    return found.uri


def fill_new_volume(client: StorageClient, source: Source, opened: Image, name: str) -> Volume:
    """Create the volume `name` with the contents of `opened`, or no volume at all."""
    created: Volume | None = None
    try:
        with ending_signals_held():
            created = client.create_volume(name, opened.volume_bytes)
        uri = local_uri(created)
        # The volume is new, so zeros need not be written: empty areas stay empty.
        convert(
            ["-n", "--target-is-zero", "-W", *opened.source, "-O", "raw", uri],
            title=f"importing {source.title}",
            size_bytes=opened.size_bytes,
        )
        source.refuse_changed()
        flush_export(uri)
    except BaseException as error:
        if created is not None:
            with ending_signals_held():
                discard(client, created, error)
        raise
    return client.show_volume(created.id)


def discard(client: StorageClient, volume: Volume, cause: BaseException) -> None:
    """Delete a half-filled volume, as soon as the daemon sees that qemu-img let go of it."""
    try:
        when_released(lambda: client.delete_volume(volume.id))
    except BockdError as error:
        raise BockdError(
            f"{str(cause) or 'interrupted'}; volume {volume.id} ({volume.name}) is half filled "
            f"and could not be deleted: {error}"
        ) from cause


def when_released(action: Callable[[], T]) -> T:
    """Do what needs a volume without clients, as soon as the daemon sees that the tool which we
    ran has let go of it. Raises InUseError when somebody keeps it."""
    deadline = time.monotonic() + RELEASE_TIMEOUT_SECONDS
    while True:
        try:
            return action()
        except (InUseError, InvalidStateError):
            if time.monotonic() > deadline:
                raise
            time.sleep(RELEASE_POLL_SECONDS)


def export_options(command: click.decorators.FC) -> click.decorators.FC:
    """The options that both exports have."""
    command = json_option(command)
    command = click.option("--force", is_flag=True, help="Replace IMAGE if it exists.")(command)
    return click.option(
        "--format",
        "image_format",
        type=click.Choice(EXPORT_FORMATS),
        help="By default qcow2 if IMAGE ends in .qcow2, raw otherwise.",
    )(command)


@click.command("export")
@click.argument("volume", shell_complete=complete_volume)
@click.argument("image", type=click.Path(path_type=Path))
@export_options
def export_volume(
    volume: str, image: Path, image_format: str | None, force: bool, as_json: bool
) -> None:
    """Write a volume to the disk image IMAGE.

    Empty areas stay empty. Export a snapshot instead while the volume is being written. IMAGE
    appears under its name only when it is complete and on disk.

    \b
    bock volume export web web.qcow2
    """
    export(connect().find_volume(volume), image, image_format, force=force, as_json=as_json)


@click.command("export")
@click.argument("snapshot", shell_complete=complete_snapshot)
@click.argument("image", type=click.Path(path_type=Path))
@export_options
def export_snapshot(
    snapshot: str, image: Path, image_format: str | None, force: bool, as_json: bool
) -> None:
    """Write a snapshot to the disk image IMAGE.

    IMAGE appears under its name only when it is complete and on disk.

    \b
    bock snapshot export before-upgrade backup.raw
    """
    export(connect().find_snapshot(snapshot), image, image_format, force=force, as_json=as_json)


def export(
    source: Volume | Snapshot,
    image: Path,
    image_format: str | None,
    *,
    force: bool,
    as_json: bool,
) -> None:
    """Write an export to an image file and say so."""
    uri = local_uri(source)
    target = image.absolute()
    chosen = image_format or ("qcow2" if target.suffix == ".qcow2" else "raw")
    with ending_signals_interrupt(), written_whole(target, force=force) as partial:
        convert(
            ["-f", "raw", "-O", chosen, uri, str(partial)],
            title=f"exporting {source.name}",
            size_bytes=source.size_bytes,
        )
    report(
        {"image": str(target), "format": chosen, "size_bytes": source.size_bytes},
        f"exported {source.name} to {target} ({chosen}, {format_size(source.size_bytes)})",
        as_json=as_json,
    )


@contextlib.contextmanager
def written_whole(target: Path, *, force: bool) -> Iterator[Path]:
    """A file beside `target` that takes its name when the body has succeeded, durably; if the
    body fails, nothing is left. Raises ConflictError when `target` exists, without `force`."""
    refuse_existing(target, force=force)
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name[:200]}.", dir=target.parent)
    except OSError as error:
        raise BockdError(f"cannot write in {target.parent}: {error.strerror}") from error
    os.close(descriptor)
    partial = Path(name)
    try:
        yield partial
        settle(partial, target, force=force)
    except KeyboardInterrupt as error:
        raise BockdError(f"interrupted; {target} was not written") from error
    except OSError as error:
        raise BockdError(f"cannot write {target}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def refuse_existing(target: Path, *, force: bool) -> None:
    """Raise unless `target` may be written."""
    if not os.path.lexists(target):
        return
    if not target.is_file():
        raise ConflictError(f"{target} exists and is not a regular file")
    if not force:
        raise ConflictError(f"{target} exists: say --force to replace it")


def settle(partial: Path, target: Path, *, force: bool) -> None:
    """Make a complete file durable and give it its name and the usual permissions."""
    umask = os.umask(0)
    os.umask(umask)
    partial.chmod(0o666 & ~umask)
    sync(partial)
    refuse_existing(target, force=force)  # it may have appeared meanwhile
    partial.replace(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """fsync a file or a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
