"""`bock image`: import, list, show, delete."""

from __future__ import annotations

from dataclasses import asdict

import click

from bockd.cli.arguments import new_image_name, reference
from bockd.cli.asking import confirm
from bockd.cli.client import ControlClient, connect
from bockd.cli.completion import complete_image
from bockd.cli.convert import ending_signals_held, ending_signals_interrupt
from bockd.cli.lazy import LazyGroup
from bockd.cli.output import format_time, json_option, print_json, print_record, print_table, say
from bockd.cli.sizes import format_exact_size, format_size
from bockd.cli.sources import Source, name_of_source, note_dropped, opened_image, opened_source
from bockd.cli.transfer import fill_export
from bockd.cli.waiting import when_released
from bockd.control import ImageInfo, ImportInfo
from bockd.diskimage import IMPORT_FORMATS, Image
from bockd.diskimage.room import room_for
from bockd.errors import BockdError, NotFoundError
from bockd.model import NodeKind
from bockd.pool.reports import Space
from bockd.validation import check_image_name


@click.group(cls=LazyGroup)
def image() -> None:
    """Import, list and delete the images that volumes are made from.

    An IMAGE is named by its name or its id. A volume made from one is a copy of its block map: it
    is ready at once, and stays when the image is deleted.
    """


@image.command("import")
@click.argument("source", metavar="FILE|URL|-")
@click.option(
    "--name",
    type=new_image_name,
    metavar="NAME",
    help="The image's name. By default the file's, without its ending.",
)
@click.option(
    "--format",
    "image_format",
    type=click.Choice(IMPORT_FORMATS),
    help="The file's format. By default what its content shows; say raw to take it as it is.",
)
@json_option
def import_(source: str, name: str | None, image_format: str | None, as_json: bool) -> None:
    """Import a disk image: a file, an http or https URL, or - for standard input.

    What is compressed (gzip, xz, zstd, bzip2) is unpacked, and the disk of an OVA taken out. The
    same content is imported once: when it is an image already, that one is named and nothing is
    done. If the import fails or is interrupted, nothing of it is left behind.

    \b
    bock image import debian-12.qcow2
    bock image import https://example.org/debian-12.qcow2 --name debian-12
    """
    name = check_image_name(name_of_source(source, name))
    client = connect()
    client.list_images()  # before anything that takes long: is there a daemon?
    with ending_signals_interrupt():
        try:
            with opened_source(source) as opened:
                found, imported = import_source(client, opened, name, image_format)
        except KeyboardInterrupt as error:
            raise BockdError("interrupted; no image was left behind") from error
    if as_json:
        print_json({**shaped(found), "imported": imported})
        return
    what = "imported" if imported else "not imported again:"
    say(
        f"{what} {opened.title} ({found.disk_format}) "
        f"{'as' if imported else 'is'} image {found.id} ({found.name}), "
        f"{format_size(found.size_bytes)}"
    )


def import_source(
    client: ControlClient, source: Source, name: str, image_format: str | None
) -> tuple[ImageInfo, bool]:
    """Return the image with this content, and whether it is new. It is imported if there is none
    yet."""
    checksum = source.checksum()
    with opened_image(source, image_format) as found:
        for known in client.list_images():
            same = (known.checksum, known.disk_format) == (checksum, found.format)
            if same and not known.fetched:
                return known, False
        note_dropped(found, source.title)
        return fill_new_image(client, source, found, name), True


def fill_new_image(client: ControlClient, source: Source, opened: Image, name: str) -> ImageInfo:
    """Import `opened`, or leave nothing behind."""
    begun: ImportInfo | None = None
    made: ImageInfo | None = None
    try:
        with ending_signals_held():
            begun = client.begin_import(
                name,
                opened.format,
                opened.volume_bytes,
                source.file_bytes,
                source.checksum(),
                opened.size_bytes,
            )
        filled = begun.id
        with room_for(opened, client.info().pool_directory, source.title):
            fill_export(begun.uri, opened, source.title)
            source.refuse_changed()
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
    """Have the daemon discard an unfinished import."""
    try:
        when_released(lambda: client.cancel_import(begun.id))
    except NotFoundError:
        return  # it is as it should be
    except BockdError as error:
        raise BockdError(
            f"{str(cause) or 'interrupted'}; the half import could not be cancelled ({error}); "
            "the daemon gives it up by itself"
        ) from cause


def shaped(found: ImageInfo, space: Space | None = None) -> dict[str, object]:
    """Convert an image to what JSON output has everywhere. Only `show` measures its space."""
    return {**asdict(found), "space": space}


@image.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List images."""
    images = connect().list_images()
    if as_json:
        print_json([shaped(found) for found in images])
        return
    print_table(
        ("ID=", "NAME", "SIZE>", "FORMAT=", "FILE>", "IMPORTED="),
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
@click.argument("image", type=reference, shell_complete=complete_image)
@json_option
def show(image: str, as_json: bool) -> None:
    """Show one image, with the space it takes."""
    client = connect()
    found = client.show_image(image)
    space = client.space(NodeKind.SNAPSHOT, str(found.snapshot))
    if as_json:
        print_json(shaped(found, space))
        return
    print_record(
        [
            ("id", found.id),
            ("name", found.name),
            ("size", format_exact_size(found.size_bytes)),
            ("smallest volume", f"{found.min_size_gib} GiB"),
            ("format", found.disk_format),
            ("file", format_exact_size(found.file_bytes)),
            ("sha256", found.checksum),
            ("imported", format_time(found.created_at)),
            ("uri", found.uri),
            ("exclusive", format_size(space.exclusive_bytes)),
            ("shared", format_size(space.shared_bytes)),
        ]
    )


@image.command()
@click.argument("image", type=reference, shell_complete=complete_image)
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
        print_json({"deleted": shaped(found)})
        return
    say(f"deleted image {found.id} ({found.name})")
