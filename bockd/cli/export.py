"""`bock volume export` and `bock snapshot export`: disk images out.

An export that fails or is interrupted leaves no file, and never half of one under the name that was
asked for. What was imported comes back in its own size: what was added to make whole blocks is left
out, as long as nothing was written there.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from bockd.cli.arguments import reference
from bockd.cli.completion import complete_snapshot, complete_volume
from bockd.cli.convert import Show, byte_bar, ending_signals_interrupt, fraction_of, run_convert
from bockd.cli.copying import copy_out, reads_as_zeros
from bockd.cli.output import json_option, report
from bockd.cli.records import Snapshot, Volume, local_uri
from bockd.cli.scratch import scratch
from bockd.cli.silence import NBD_QUESTION, telling_silence
from bockd.cli.sizes import format_size
from bockd.cli.storage import connect
from bockd.diskimage.kinds import SECTOR_BYTES, promised_format
from bockd.errors import BockdError, ConflictError
from bockd.model import MIB, split_export_uri

EXPORT_FORMATS = ("raw", "qcow2", "vmdk", "vdi", "vhdx", "vhd")

QEMU_FORMATS = {"vhd": ["vpc", "-o", "force_size=on"]}
"""QEMU's name for a format, and what keeps it from rounding the size up to a geometry."""

RAW_ENDINGS = frozenset({"", ".img", ".bin", ".dd", ".iso"})
"""Of names that stand for the disk's bytes as they are, besides `.raw`."""

STANDARD_OUTPUT = "-"

WINDOW_BYTES = 256 * MIB
"""What is kept on disk of a raw export that goes to standard output."""

COPY_BYTES = 1 << 20


def format_for(image: str, chosen: str | None) -> str:
    """Return the format of an export: the chosen one, or what its name's ending says. Raises
    UsageError."""
    if chosen is not None:
        return chosen
    if image == STANDARD_OUTPUT:
        return "raw"
    ending = Path(image).suffix.lower()
    found = "raw" if ending in RAW_ENDINGS else promised_format(image)
    if found is None:
        raise click.UsageError(
            f"no format is known by the ending {ending!r}: say --format "
            f"({', '.join(EXPORT_FORMATS)})"
        )
    return found


def export_options(command: click.decorators.FC) -> click.decorators.FC:
    """Add the options that both export commands have."""
    command = json_option(command)
    command = click.option("--force", is_flag=True, help="Replace IMAGE if it exists.")(command)
    command = click.option(
        "--padded", is_flag=True, help="With what an import added to make whole blocks of 4 KiB."
    )(command)
    return click.option(
        "--format",
        "image_format",
        type=click.Choice(EXPORT_FORMATS),
        help="By default what IMAGE's ending says: .qcow2, .vmdk, ...; raw without one.",
    )(command)


@click.command("export")
@click.argument("volume", type=reference, shell_complete=complete_volume)
@click.argument("image")
@export_options
def export_volume(
    volume: str,
    image: str,
    image_format: str | None,
    padded: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Write a volume to the disk image IMAGE; - is standard output.

    Empty areas stay empty. Export a snapshot instead while the volume is being written. IMAGE
    appears under its name only when it is complete and on disk.

    \b
    bock volume export web web.qcow2
    bock volume export web - | gzip > web.raw.gz
    """
    image_format = format_for(image, image_format)
    check_output(image, as_json=as_json)
    with ending_signals_interrupt():
        export(
            connect().find_volume(volume),
            image,
            image_format,
            padded=padded,
            force=force,
            as_json=as_json,
        )


@click.command("export")
@click.argument("snapshot", type=reference, shell_complete=complete_snapshot)
@click.argument("image")
@export_options
def export_snapshot(
    snapshot: str,
    image: str,
    image_format: str | None,
    padded: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Write a snapshot to the disk image IMAGE; - is standard output.

    IMAGE appears under its name only when it is complete and on disk.

    \b
    bock snapshot export before-upgrade backup.raw
    """
    image_format = format_for(image, image_format)
    check_output(image, as_json=as_json)
    with ending_signals_interrupt():
        export(
            connect().find_snapshot(snapshot),
            image,
            image_format,
            padded=padded,
            force=force,
            as_json=as_json,
        )


def check_output(image: str, *, as_json: bool) -> None:
    """Raise UsageError for what cannot be written to standard output."""
    if image != STANDARD_OUTPUT:
        return
    if as_json:
        raise click.UsageError("--json has no place when the image itself goes to standard output")
    if sys.stdout.isatty():
        raise click.UsageError("standard output is a terminal: redirect it to a file or a program")


def export(
    source: Volume | Snapshot,
    image: str,
    image_format: str,
    *,
    padded: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Write an export to an image file and say so, or to standard output."""
    uri = local_uri(source)
    title = f"exporting {source.name}"
    target = Path(image).absolute()
    with telling_silence(split_export_uri(uri)[1], NBD_QUESTION):
        length = source.size_bytes if padded else length_given_back(source, uri)
        if image == STANDARD_OUTPUT:
            try:
                write_out(uri, length, image_format, title)
            except BrokenPipeError as error:
                discard_output()
                raise BockdError("nobody reads standard output any more") from error
            return
        with written_whole(target, force=force) as partial, byte_bar(title, length) as show:
            write_image(uri, length, image_format, partial, show)
    report(
        {"image": str(target), "format": image_format, "size_bytes": length},
        f"exported {source.name} to {target} ({image_format}, {format_size(length)})",
        as_json=as_json,
    )


def length_given_back(source: Volume | Snapshot, uri: str) -> int:
    """Return the size in bytes of what was imported, if only zeros follow it; else the whole size.
    Raises BockdError."""
    rest = source.size_bytes - source.content_bytes
    if not rest:
        return source.size_bytes
    padding = reads_as_zeros(uri, source.content_bytes, rest)
    return source.content_bytes if padding else source.size_bytes


def write_image(uri: str, length: int, image_format: str, target: Path, show: Show) -> None:
    """Write the first `length` bytes of an export to a new file. Raises BockdError, OSError."""
    if image_format != "raw":
        arguments = [*beginning_of(uri, length), *target_options(image_format), str(target)]
        run_convert(arguments, fraction_of(length, show))
        return
    with target.open("xb", buffering=0) as file:
        copy_out(uri, 0, length, file.fileno(), show)


def beginning_of(uri: str, length: int) -> list[str]:
    """Return qemu-img's arguments for the first `length` bytes of an export, rounded up to whole
    sectors."""
    name, socket = split_export_uri(uri)
    server = {"type": "unix", "path": socket}
    options = {
        "driver": "raw",
        "offset": 0,
        "size": -(-length // SECTOR_BYTES) * SECTOR_BYTES,
        "file": {"driver": "nbd", "export": name, "server": server},
    }
    return [f"json:{msgspec.json.encode(options).decode()}"]


def target_options(image_format: str) -> list[str]:
    """Return qemu-img's arguments for the format that is written."""
    return ["-O", *QEMU_FORMATS.get(image_format, [image_format])]


def write_out(uri: str, length: int, image_format: str, title: str) -> None:
    """Write an export to standard output: raw piece by piece, other formats when they are
    complete, since qemu-img goes back in what it writes. Raises BockdError, BrokenPipeError."""
    window = WINDOW_BYTES if image_format == "raw" else length
    with byte_bar(title, length) as show:
        for offset in range(0, length, window):
            part = min(window, length - offset)
            with scratch(title) as kept:
                if image_format == "raw":
                    copy_out(uri, offset, part, kept.file.fileno(), moved(show, offset))
                else:
                    write_image(uri, length, image_format, kept.path, show)
                kept.file.seek(0)
                while chunk := kept.file.read(COPY_BYTES):
                    sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


def moved(show: Show, offset: int) -> Show:
    """Return a progress function for a part that begins at `offset` of what `show` shows."""
    return None if show is None else lambda done: show(offset + done)


def discard_output() -> None:
    """Redirect standard output to /dev/null, so that Python does not complain at its end about data
    that nobody has read."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def written_whole(target: Path, *, force: bool) -> Iterator[Path]:
    """Yield a path to write to. When the body has succeeded, the file takes the place of `target`,
    durably. If the body fails, nothing is left. Raises ConflictError when `target` exists, without
    `force`.

    The file already has the name of `target`, in a new directory beside it, because a vmdk contains
    its own name.
    """
    refuse_existing(target, force=force)
    try:
        made = tempfile.mkdtemp(prefix=f".{target.name[:200]}.", dir=target.parent)
    except OSError as error:
        raise BockdError(f"cannot write in {target.parent}: {error.strerror}") from error
    directory = Path(made)
    partial = directory / target.name
    try:
        yield partial
        put_in_place(partial, target, force=force)
    except KeyboardInterrupt as error:
        raise BockdError(f"interrupted; {target} was not written") from error
    except OSError as error:
        raise BockdError(f"cannot write {target}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
        directory.rmdir()


def refuse_existing(target: Path, *, force: bool) -> None:
    """Raise unless `target` may be written."""
    if not os.path.lexists(target):
        return
    if not target.is_file():
        raise ConflictError(f"{target} exists and is not a regular file")
    if not force:
        raise ConflictError(f"{target} exists: say --force to replace it")


def put_in_place(partial: Path, target: Path, *, force: bool) -> None:
    """Make a complete file durable and give it its name and the usual permissions."""
    umask = os.umask(0)
    os.umask(umask)
    partial.chmod(0o666 & ~umask)
    sync(partial)
    refuse_existing(target, force=force)  # it may have appeared meanwhile
    partial.replace(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Sync a file or a directory to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
