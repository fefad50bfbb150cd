"""What is in the way of an operation that was refused, and the command that helps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bockd.cli.records import Snapshot, Volume
from bockd.cli.storage import StorageClient
from bockd.errors import BockdError, InvalidStateError


@contextmanager
def explained(client: StorageClient, found: Volume | Snapshot) -> Iterator[None]:
    """Explain a refusal: if the state of a volume or snapshot refuses the operation in the body,
    the error says who uses it now, and how to end that."""
    try:
        yield
    except InvalidStateError as error:
        try:
            reason = obstacle(client, found)
        except BockdError:
            reason = None
        if reason is None:
            raise
        raise InvalidStateError(reason) from error


def obstacle(client: StorageClient, found: Volume | Snapshot) -> str | None:
    """Return who uses a volume or a snapshot, and how to end that; None when nobody does."""
    if isinstance(found, Snapshot):
        clients = client.show_snapshot(found.id).connections
        if not clients:
            return None
        return (
            f"snapshot {found.id} ({found.name}) is being read by {counted(clients)}: end "
            "them first ('bock stat' shows what they do)"
        )
    now = client.show_volume(found.id)
    called = f"volume {now.id} ({now.name})"
    if now.attachment is not None:
        at = now.attachment
        return (
            f"{called} is {now.status}, attached to {at.server} as {at.device}: "
            f"'bock attachment delete {now.id}' detaches it (on this machine, "
            f"'bock disconnect {now.id}')"
        )
    if now.hold is not None:
        return f"{called} is held ({now.hold}); 'bock volume release {now.id}' ends that"
    if now.connections:
        return (
            f"{called} is used by {counted(now.connections)}: end them first ('bock stat "
            f"{now.id}' shows what they do)"
        )
    return None


def counted(clients: int) -> str:
    """Format a number of clients, as in "1 client" and "2 clients"."""
    return f"{clients} client{'s' * (clients != 1)}"
