"""`bock volume`: create, list, show, extend, delete, reopen. See also `editing`, `caching`,
`transfer` and `export`."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import replace

import click

from bockd.cli.arguments import new_name, reference
from bockd.cli.asking import confirm
from bockd.cli.client import connect as connect_control
from bockd.cli.completion import complete_image, complete_snapshot, complete_volume
from bockd.cli.iolimits import limit_fields
from bockd.cli.lazy import LazyGroup
from bockd.cli.leftovers import delete_leftovers, snapshots_of_migrations
from bockd.cli.obstacles import explained
from bockd.cli.output import (
    format_count,
    format_time,
    json_option,
    print_json,
    print_record,
    print_table,
    report,
    say,
)
from bockd.cli.profiles import profile_option
from bockd.cli.records import Cache, Snapshot, Volume
from bockd.cli.sizes import format_exact_size, format_size, size_option
from bockd.cli.storage import StorageClient, connect
from bockd.cli.trash import fate
from bockd.cli.trashclient import kept
from bockd.errors import BockdError, ConflictError, DeniedError, NotSupportedError
from bockd.model import DeviceProfile, NodeKind
from bockd.pool.reports import Space


@click.group(cls=LazyGroup)
def volume() -> None:
    """Create, list, grow, import, export and delete volumes.

    A VOLUME is named by its name or its id.
    """


@volume.command()
@click.argument("name", type=new_name)
@click.option(
    "--size",
    type=size_option,
    metavar="SIZE",
    help="Like 10GiB, 512M or 1T, from 1 MiB to 16 TiB. 10G is 10GiB, and 10GB is refused.",
)
@click.option(
    "--from-snapshot",
    metavar="SNAPSHOT",
    type=reference,
    shell_complete=complete_snapshot,
    help="Begin with what this snapshot holds; --size may then be larger or absent.",
)
@click.option(
    "--image",
    metavar="IMAGE",
    shell_complete=complete_image,
    help="Begin with what this image holds; --size may then be larger or absent.",
)
@profile_option("--profile")
@json_option
def create(
    name: str,
    size: int | None,
    from_snapshot: str | None,
    image: str | None,
    profile: DeviceProfile | None,
    as_json: bool,
) -> None:
    """Create the volume NAME, blank, or as a copy of a snapshot or an image.

    It takes no space until it is written.

    \b
    bock volume create web --size 10GiB
    bock volume create web-test --from-snapshot before-upgrade
    bock volume create web --image debian-12
    bock volume create slow --size 10GiB --profile hdd-7200
    """
    if from_snapshot is not None and image is not None:
        raise click.UsageError("say --from-snapshot or --image, not both")
    if size is None and from_snapshot is None and image is None:
        raise click.UsageError("say --size, or --from-snapshot or --image to copy one")
    if profile is not None:
        connect_control().info()  # who may not ask it is told before there is a volume
    client = connect()
    created = client.create_volume(name, size, from_snapshot, from_image=image)
    if profile is not None:
        created = profiled(client, created, profile)
    waiting = ", which is being fetched" if created.status == "creating" else ""
    report(
        created,
        f"created volume {created.id} ({created.name}), {format_size(created.size_bytes)}{waiting}",
        *where_to_connect(created),
        as_json=as_json,
    )


@volume.command()
@click.argument("volume", type=reference, shell_complete=complete_volume)
@click.argument("name", type=new_name)
@click.option(
    "--size",
    type=size_option,
    metavar="SIZE",
    help="Larger than VOLUME, and as large without it. 10G is 10GiB, and 10GB is refused.",
)
@json_option
def clone(volume: str, name: str, size: int | None, as_json: bool) -> None:
    """Create the volume NAME, which holds what VOLUME holds now.

    Takes no time and no space, and VOLUME may be in use: what its file system has not written yet
    is not in the clone. It is made of a snapshot that is deleted when the clone is there, so either
    volume can be deleted, and nothing is left of it.

    \b
    bock volume clone web web-test
    """
    client = connect()
    origin = client.find_volume(volume)
    created = client.create_volume(name, size, from_volume=origin.id)
    report(
        created,
        f"cloned volume {origin.id} ({origin.name}) as volume {created.id} ({created.name}), "
        f"{format_size(created.size_bytes)}",
        *where_to_connect(created),
        as_json=as_json,
    )


def profiled(client: StorageClient, created: Volume, profile: DeviceProfile) -> Volume:
    """Give a new volume a device profile, and return it. Raises NotSupportedError if it is at a
    daemon elsewhere."""
    if created.uri is None:
        raise NotSupportedError(
            f"volume {created.id} ({created.name}) was created, without a profile: its daemon is "
            "on another machine, where 'bock volume profile' gives it one"
        )
    connect_control().profile_volume(str(created.id), profile)
    return client.find_volume(str(created.id))


def where_to_connect(found: Volume) -> list[str]:
    """Return a line about a new volume that says where to connect to it, if that is known."""
    return [] if found.uri is None else [f"connect to it at {found.uri}"]


@volume.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List all volumes of the tenant."""
    volumes = connect().list_volumes()
    if as_json:
        print_json(volumes)
        return
    print_table(
        ("ID>", "NAME", "SIZE>", "STATUS=", "CLIENTS>", "CREATED="),
        [
            (
                str(found.id),
                found.name,
                format_size(found.size_bytes),
                found.status,
                format_count(found.connections),
                format_time(found.created_at),
            )
            for found in volumes
        ],
    )


@volume.command()
@click.argument("volume", type=reference, shell_complete=complete_volume)
@json_option
def show(volume: str, as_json: bool) -> None:
    """Show one volume, with the space it takes.

    Exclusive space returns when the volume is deleted; shared space is also used by snapshots or
    other volumes.
    """
    client = connect()
    found = client.find_volume(volume)
    space = client.space(NodeKind.VOLUME, found.id)
    if as_json:
        print_json(replace(found, space=space))
        return
    print_record([*volume_fields(found), *space_fields(space)])


def volume_fields(found: Volume) -> list[tuple[str, str]]:
    """Return the titles and values that are printed for a volume."""
    at = found.attachment
    attached = [] if at is None else [("attached to", f"{at.server} as {at.device}")]
    origin = [] if found.from_snapshot is None else [("from snapshot", str(found.from_snapshot))]
    cloned = [] if found.from_volume is None else [("clone of", f"volume {found.from_volume}")]
    image = [] if found.from_image is None else [("from image", found.from_image)]
    trouble = [] if found.error is None else [("error", found.error)]
    held = [] if found.hold is None else [("held", found.hold)]
    holder = [] if found.gateway is None else [("gateway", found.gateway or "none")]
    return [
        ("id", str(found.id)),
        ("name", found.name),
        ("size", format_exact_size(found.size_bytes)),
        *imported_fields(found),
        ("status", found.status),
        *held,
        *trouble,
        *attached,
        *holder,
        *([] if found.cache is None else cache_fields(found.cache)),
        *limit_fields(found.limits),
        *([] if found.profile is None else [("device profile", found.profile)]),
        *origin,
        *cloned,
        *image,
        *((f"metadata {key}", value) for key, value in sorted(found.metadata.items())),
        *end_fields(found),
    ]


def cache_fields(cache: Cache) -> list[tuple[str, str]]:
    """Return what is printed for the way a volume is cached."""
    fields = [("cache", cache.mode)]
    if cache.dirty_at is not None:
        size = "writes" if cache.dirty_bytes is None else format_size(cache.dirty_bytes)
        since = "" if cache.dirty_since is None else f" since {format_time(cache.dirty_since)}"
        fields.append(("dirty", f"{size} at gateway {cache.dirty_at}{since}"))
    if cache.error is not None:
        fields.append(("not written back", cache.error))
    if cache.discarded_at is not None:
        fields.append(("cache discarded", format_time(cache.discarded_at) + what_became(cache)))
    return fields


def what_became(cache: Cache) -> str:
    """Return what is printed for what became of the log of what was discarded last."""
    if cache.salvaged_bytes is None or cache.given_up_bytes is None:
        return ""
    written, given_up = format_size(cache.salvaged_bytes), format_size(cache.given_up_bytes)
    return f": the last attempt wrote back {written} of its log, and {given_up} were given up"


def imported_fields(found: Volume | Snapshot) -> list[tuple[str, str]]:
    """Return what is printed for the size that an export has, if it is not the volume's own
    size."""
    if found.content_bytes == found.size_bytes:
        return []
    return [("imported size", format_exact_size(found.content_bytes))]


def end_fields(found: Volume | Snapshot) -> list[tuple[str, str]]:
    """Return what is printed at the end for a volume or a snapshot."""
    described = [] if not found.description else [("description", found.description)]
    return [
        *described,
        ("clients", format_count(found.connections)),
        ("created", format_time(found.created_at)),
        *([] if found.uri is None else [("uri", found.uri)]),
    ]


def space_fields(space: Space) -> list[tuple[str, str]]:
    """Return what is printed for the space that a volume or a snapshot takes."""
    return [
        ("exclusive", format_size(space.exclusive_bytes)),
        ("shared", format_size(space.shared_bytes)),
    ]


@volume.command()
@click.argument("volume", type=reference, shell_complete=complete_volume)
@click.option(
    "--size",
    type=size_option,
    metavar="SIZE",
    required=True,
    help="The new size, larger than the old one. 10G is 10GiB, and 10GB is refused.",
)
@json_option
def extend(volume: str, size: int, as_json: bool) -> None:
    """Grow a volume to a new size; what is added reads as zeros.

    A virtual machine that it is plugged into, and a device that bock connect has made of it on this
    machine, are larger at once, used or not; on another machine after bock connect --refresh. Other
    NBD clients see the new size when they connect again.

    \b
    bock volume extend web --size 20GiB
    """
    client = connect()
    found = client.find_volume(volume)
    grown = client.extend_volume(found.id, size)
    report(
        grown,
        f"volume {grown.id} ({grown.name}) now has {format_size(grown.size_bytes)}",
        as_json=as_json,
    )
    for trouble in enlarge_devices(client, grown):
        say(f"bock: {trouble}", err=True)


def enlarge_devices(client: StorageClient, grown: Volume) -> Iterator[str]:
    """Give the device of a volume on this machine the size to which the volume has grown. Yield
    what stands in the way, here or in the virtual machine that has the volume."""
    if grown.attachment is None:
        return
    if grown.last_error is not None:
        yield grown.last_error
    # Few volumes are devices of this machine, and this is much to import.
    from bockd.cli.connecting import Connector
    from bockd.host.records import Records

    connector = Connector(client, Records.of_environment(os.environ))
    try:
        if any(one.volume == grown.id for one in connector.own()):
            for outcome in connector.refresh(str(grown.id)):
                if isinstance(outcome, BockdError):
                    yield str(outcome)
    except DeniedError:
        if grown.attachment.server == socket.gethostname():
            yield f"its device has its old size still: sudo bock connect --refresh {grown.id}"
    except BockdError as error:
        yield f"its device has its old size still: {error}"


@volume.command()
@click.argument("volume", type=reference, shell_complete=complete_volume)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def delete(volume: str, yes: bool, as_json: bool) -> None:
    """Delete a volume; its snapshots stay.

    Asks first when run at a terminal. Refused while a client is connected, or the volume is
    attached to a server, or held, unless it has been migrated.
    """
    client = connect()
    found = client.find_volume(volume)
    if found.hold is not None and not found.has_moved:
        raise ConflictError(
            f"volume {found.id} ({found.name}) is held ({found.hold}); 'bock volume release "
            f"{found.id}' ends that"
        )
    confirm(
        f"Delete volume {found.id} ({found.name}, {format_size(found.size_bytes)}) and its data?",
        yes=yes,
    )
    with explained(client, found):
        client.delete_volume(found.id, hold=found.hold)
    trashed = kept(client, found.id)
    report(
        {"deleted": found, "in_trash": trashed},
        f"deleted volume {found.id} ({found.name})",
        *fate(trashed),
        as_json=as_json,
    )


@volume.command()
@click.argument("volume", type=reference, shell_complete=complete_volume)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def reopen(volume: str, yes: bool, as_json: bool) -> None:
    """Use a volume in status error again.

    After a disk error nobody can know which of the writes since the last successful flush are on
    disk, so the volume refuses everything until you have decided. `bock volume show` says what
    happened. Check what is on the volume afterwards, or revert it to a snapshot. Asks first when
    run at a terminal.
    """
    client = connect()
    found = client.find_volume(volume)
    confirm(
        f"Use volume {found.id} ({found.name}) again, although its latest writes may be lost?",
        yes=yes,
    )
    reopened = client.reopen_volume(found.id)
    report(
        reopened, f"volume {reopened.id} ({reopened.name}) is {reopened.status}", as_json=as_json
    )


@volume.command()
@click.argument("volume", type=reference, shell_complete=complete_volume)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def release(volume: str, yes: bool, as_json: bool) -> None:
    """Use a volume in status maintenance again.

    `bock volume show` says who holds it. One that was migrated is used in the other pool now: what
    is written to it here is not there. Snapshots that an unfinished migration has left are deleted,
    also of a volume that is not held. Asks first when run at a terminal.
    """
    client = connect()
    released = found = client.find_volume(volume)
    state = f"it is held ({found.hold})" if found.hold else "its migration is not finished"
    confirm(f"Use volume {found.id} ({found.name}) again, although {state}?", yes=yes)
    if found.hold is not None or not snapshots_of_migrations(client, found.id):
        # Whoever has held it since the question was asked keeps it.
        released = client.release_volume(found.id, reason=found.hold or "")
    delete_leftovers(client, found.id)
    report(
        released, f"volume {released.id} ({released.name}) is {released.status}", as_json=as_json
    )


volume.add_lazily("rename", "bockd.cli.editing:rename_volume")
volume.add_lazily("set", "bockd.cli.editing:set_volume")
volume.add_lazily("limit", "bockd.cli.limiting:limit_volume")
volume.add_lazily("profile", "bockd.cli.profiling:profile_volume")
volume.add_lazily("set-cache", "bockd.cli.caching:set_cache")
volume.add_lazily("discard-cache", "bockd.cli.caching:discard_cache")
volume.add_lazily("import", "bockd.cli.transfer:import_image")
volume.add_lazily("export", "bockd.cli.export:export_volume")
volume.add_lazily("migrate", "bockd.cli.migrate:migrate")
