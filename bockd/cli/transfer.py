"""`bock volume import`: a disk image becomes a volume, or nothing is left. See also `export`."""

from __future__ import annotations

import click

from bockd.cli.arguments import new_name
from bockd.cli.convert import (
    byte_bar,
    convert,
    ending_signals_held,
    ending_signals_interrupt,
)
from bockd.cli.copying import copy_in, flush
from bockd.cli.output import json_option, report
from bockd.cli.records import Volume, local_uri
from bockd.cli.silence import NBD_QUESTION, telling_silence
from bockd.cli.sizes import format_size
from bockd.cli.sources import Source, name_of_source, note_dropped, opened_image, opened_source
from bockd.cli.storage import StorageClient, connect
from bockd.cli.volume import where_to_connect
from bockd.cli.waiting import when_released
from bockd.diskimage import IMPORT_FORMATS, Image
from bockd.diskimage.room import room_for
from bockd.errors import BockdError
from bockd.model import split_export_uri


@click.command("import")
@click.argument("image", metavar="FILE|URL|-")
@click.option(
    "--name",
    type=new_name,
    metavar="NAME",
    help="The volume's name. By default the file's, without its ending.",
)
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


def fill_new_volume(client: StorageClient, source: Source, opened: Image, name: str) -> Volume:
    """Create the volume `name` with the contents of `opened`, or no volume at all."""
    created: Volume | None = None
    try:
        with ending_signals_held():
            created = client.create_volume(
                name, opened.volume_bytes, content_bytes=opened.size_bytes
            )
        uri = local_uri(created)
        with room_for(opened, client.pool_directory, source.title):
            fill_export(uri, opened, source.title)
            source.refuse_changed()
    except BaseException as error:
        if created is not None:
            with ending_signals_held():
                discard(client, created, error)
        raise
    return client.show_volume(created.id)


def fill_export(uri: str, opened: Image, title: str) -> None:
    """Write an image to the export of a new volume, durably. Empty areas stay empty, because what
    is new reads as zeros. Raises BockdError."""
    title = f"importing {title}"
    with telling_silence(split_export_uri(uri)[1], NBD_QUESTION):
        if opened.format != "raw":
            arguments = ["-n", "--target-is-zero", "-W", *opened.source, "-O", "raw", uri]
            convert(arguments, title=title, size_bytes=opened.size_bytes)
            flush(uri)
            return
        try:
            with byte_bar(title, opened.size_bytes) as show:
                copy_in(opened.path, opened.size_bytes, uri, show)
        except OSError as error:
            raise BockdError(f"cannot read {opened.path}: {error.strerror}") from error


def discard(client: StorageClient, volume: Volume, cause: BaseException) -> None:
    """Delete a volume that is not filled completely, as soon as the daemon sees that nobody is
    connected any more."""
    try:
        when_released(lambda: client.discard_volume(volume.id))
    except BockdError as error:
        raise BockdError(
            f"{str(cause) or 'interrupted'}; volume {volume.id} ({volume.name}) is half filled "
            f"and could not be deleted: {error}"
        ) from cause
