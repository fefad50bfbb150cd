"""The specification's rules as tables and pure functions: statuses, sizes, texts, devices, pages.

Nothing here reads or writes anything. What does (volumes, snapshots, attachments) asks here first,
inside its transaction.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from string import ascii_lowercase
from typing import NoReturn, Protocol, TypeVar

from bockd.blockstorage.contract import Edit, NewVolume, Page, Status
from bockd.errors import (
    ConflictError,
    InUseError,
    InvalidRequestError,
    InvalidStateError,
    NotFoundError,
    OverLimitError,
)
from bockd.model import GIB, MAX_VOLUME_BYTES, NodeKind, VolumeId, format_size, is_server_id
from bockd.validation import check_volume_size, shown_number

MIN_SIZE_GIB = 1
MAX_SIZE_GIB = MAX_VOLUME_BYTES // GIB
"""What a pool's volume may have."""

MAX_TEXT_LENGTH = 255
"""Characters of a display name, description or zone, and of a metadata key or value: the column
that Nova keeps them in."""

MAX_METADATA_ITEMS = 128
"""Nova's default, and a bound on a record's size."""

MAX_ID = (1 << 63) - 1
"""No node has a larger one; what a client sends may be any number."""

_DEVICE = re.compile(r"/dev/(?:xvd|vd|sd|hd)([a-z]{1,2})")


# -- statuses ----------------------------------------------------------------------------------

VOLUME_MOVES: Mapping[Status, frozenset[Status]] = {
    Status.CREATING: frozenset({Status.AVAILABLE, Status.ERROR}),
    Status.AVAILABLE: frozenset({Status.ATTACHING, Status.DELETING, Status.MAINTENANCE}),
    Status.ATTACHING: frozenset({Status.IN_USE, Status.AVAILABLE}),
    Status.IN_USE: frozenset({Status.DETACHING}),
    Status.DETACHING: frozenset({Status.AVAILABLE, Status.IN_USE}),
    Status.MAINTENANCE: frozenset({Status.AVAILABLE, Status.DELETING}),
    Status.DELETING: frozenset(
        {Status.AVAILABLE, Status.ERROR, Status.ERROR_DELETING, Status.MAINTENANCE}
    ),
    Status.ERROR: frozenset({Status.DELETING}),
    Status.ERROR_DELETING: frozenset({Status.DELETING}),
}
"""4.4.2 and 4.4.3, "Status Lifecycle" and rules 1 to 3: from each status, where a volume may go.
Back from attaching, detaching and deleting is for what could not be done. Maintenance is ours."""

TRANSIENT = frozenset({Status.CREATING, Status.ATTACHING, Status.DETACHING, Status.DELETING})
"""While somebody is at work on a volume or snapshot. Who dies then leaves it to others
(`bockd.blockstorage.interrupted`)."""

REACHABLE = frozenset({Status.ATTACHING, Status.IN_USE})
"""While the export of an attached volume takes new connections. A virtual machine connects while
its device is being plugged in, which is before the volume is in use."""

SNAPSHOT_MOVES: Mapping[Status, frozenset[Status]] = {
    Status.CREATING: frozenset({Status.AVAILABLE, Status.ERROR}),
    Status.AVAILABLE: frozenset({Status.DELETING}),
    Status.DELETING: frozenset({Status.AVAILABLE, Status.ERROR, Status.ERROR_DELETING}),
    Status.ERROR: frozenset({Status.DELETING}),
    Status.ERROR_DELETING: frozenset({Status.DELETING}),
}
"""4.4.4, "Status Lifecycle"."""

_MOVES = {NodeKind.VOLUME: VOLUME_MOVES, NodeKind.SNAPSHOT: SNAPSHOT_MOVES}

_NEEDED: Mapping[Status, str] = {
    Status.ATTACHING: "available to be attached",
    Status.DETACHING: "in-use to be detached",
    Status.DELETING: "available or in error to be deleted",
}


def check_move(kind: NodeKind, node: int, old: Status, new: Status) -> None:
    """Return if a volume or snapshot may go from `old` to `new`; raise InvalidStateError."""
    if new not in _MOVES[kind].get(old, frozenset()):
        needed = _NEEDED.get(new, f"in another status to become {new}")
        refuse_state(kind, node, f"its status must be {needed}; it is {old}")


def status_shown(stored: Status, *, refused: bool) -> Status:
    """Return the status that clients see: `error` when the pool refuses the volume. A volume that
    is attached keeps its status, and can be detached."""
    return Status.ERROR if refused and stored is Status.AVAILABLE else stored


def check_can_be_snapshotted(volume: int, status: Status, *, force: bool) -> None:
    """Check that a volume of this status may be snapshotted: while it is attached only with `force`
    (4.4.4, "Business Rules", and 4.4.4.2). Raise InvalidStateError otherwise."""
    if status is Status.IN_USE and not force:
        refuse_state(NodeKind.VOLUME, volume, "it is attached to a server; detach it or use force")
    if status not in (Status.AVAILABLE, Status.IN_USE, Status.MAINTENANCE):
        refuse_state(
            NodeKind.VOLUME, volume, f"its status must be available for a snapshot; it is {status}"
        )


MAX_UNCOUNTED_SNAPSHOTS = 4
"""Of a volume. Who copies it compares two; two more are what interrupted copies have left."""


def check_uncounted(volume: int, existing: int) -> None:
    """Check that a volume may have another snapshot that consumes no quota, beside those that it
    has. Raise OverLimitError otherwise."""
    if existing >= MAX_UNCOUNTED_SNAPSHOTS:
        raise OverLimitError(
            f"volume {volume} has {existing} snapshots that consume no quota already; delete them, "
            "or let this one consume quota"
        )


Check = Callable[[int, Status], None]
"""Whether the status of a volume allows something; raises InvalidStateError."""


def check_can_be_extended(volume: int, status: Status) -> None:
    """Check that a volume is available or attached: Cinder's rule since version 3.42 of its API.
    Raise InvalidStateError otherwise."""
    if status not in (Status.AVAILABLE, Status.IN_USE):
        refuse_state(
            NodeKind.VOLUME,
            volume,
            f"its status must be available or in-use to be extended; it is {status}",
        )


def check_can_be_held(
    volume: int, status: Status, hold: str | None, reason: str, instead_of: str | None
) -> None:
    """Check that nobody has or is at work on a volume, or that it is held for the same reason, or
    for the one that is to be replaced. Raise InvalidStateError otherwise."""
    if status is Status.MAINTENANCE:
        if hold not in (reason, instead_of):
            refuse_state(NodeKind.VOLUME, volume, f"it is held ({hold})")
    elif status is not Status.AVAILABLE:
        refuse_state(
            NodeKind.VOLUME, volume, f"its status must be available to be held; it is {status}"
        )
    elif instead_of is not None:
        refuse_state(NodeKind.VOLUME, volume, f"it is not held any more ({instead_of})")


def check_is_held(volume: int, status: Status, hold: str | None, reason: str | None) -> None:
    """Check that a volume is held, for this reason if one is given. Raises InvalidStateError,
    ConflictError."""
    if status is not Status.MAINTENANCE:
        _refuse_free(volume, status)
    _check_reason(volume, hold, reason)


def check_hold_of_deleted(
    volume: int, status: Status, hold: str | None, reason: str | None
) -> None:
    """Check that a volume that is to be deleted is held for this reason, if one is given, whatever
    its status: a deletion that has failed leaves `error_deleting`, and the hold. Raises
    InvalidStateError, ConflictError."""
    if reason is not None and hold is None:
        _refuse_free(volume, status)
    _check_reason(volume, hold, reason)


def _refuse_free(volume: int, status: Status) -> NoReturn:
    refuse_state(NodeKind.VOLUME, volume, f"it is not held; it is {status}")


def _check_reason(volume: int, hold: str | None, reason: str | None) -> None:
    if reason not in (None, hold):
        raise ConflictError(f"volume {volume} is held for another reason now ({hold})")


def check_can_be_reverted(volume: int, status: Status) -> None:
    """Check that a volume is available: Cinder's rule, because no server would learn that what it
    has written is gone. Raise InvalidStateError otherwise."""
    if status is not Status.AVAILABLE:
        refuse_state(
            NodeKind.VOLUME, volume, f"its status must be available to be reverted; it is {status}"
        )


def check_can_be_reverted_to(snapshot: int, status: Status, origin: int, volume: int) -> None:
    """Check that a snapshot is available and is one of the volume's own. Raises
    InvalidRequestError, InvalidStateError."""
    if origin != volume:
        raise InvalidRequestError(f"snapshot {snapshot} is not one of volume {volume}")
    if status is not Status.AVAILABLE:
        refuse_state(
            NodeKind.SNAPSHOT,
            snapshot,
            f"its status must be available to revert to it; it is {status}",
        )


def check_can_be_reopened(volume: int, status: Status, trouble: str | None) -> None:
    """Check that a volume, attached or not, is refused after an error: only such a volume can be
    reopened. Raise InvalidStateError otherwise."""
    if status not in (Status.AVAILABLE, Status.IN_USE, Status.ERROR):
        refuse_state(NodeKind.VOLUME, volume, f"it cannot be reopened while it is {status}")
    if trouble is None:
        refuse_state(NodeKind.VOLUME, volume, "nothing is wrong with it")


def check_can_be_cached(volume: int, status: Status) -> None:
    """Check that a volume is available or attached, so that it can be cached in another way. Raise
    InvalidStateError otherwise."""
    if status not in (Status.AVAILABLE, Status.IN_USE):
        refuse_state(
            NodeKind.VOLUME,
            volume,
            f"its status must be available or in-use to choose its cache; it is {status}",
        )


def check_can_lose_cache(volume: int, status: Status) -> None:
    """Check that nothing is under way with a volume whose dirty data is to be given up. Raise
    InvalidStateError otherwise."""
    if status not in (Status.AVAILABLE, Status.IN_USE, Status.ERROR):
        refuse_state(NodeKind.VOLUME, volume, f"its cache cannot be discarded while it is {status}")


def check_can_be_cloned(snapshot: int, status: Status) -> None:
    """Check that a snapshot is available, so that a volume can be made from it. Raise
    InvalidStateError otherwise."""
    if status is not Status.AVAILABLE:
        refuse_state(
            NodeKind.SNAPSHOT, snapshot, f"its status must be available to copy it; it is {status}"
        )


def refuse_state(kind: NodeKind, node: int, reason: str) -> NoReturn:
    """Raise InvalidStateError in the words that clients know: "Invalid volume: ..."."""
    raise InvalidStateError(f"Invalid {kind}: {kind} {node}: {reason}")


def in_use(kind: NodeKind, error: InUseError) -> InvalidStateError:
    """Return the pool's refusal as InvalidStateError, in the words that clients know. It says who
    has the volume or snapshot and what to do."""
    return InvalidStateError(f"Invalid {kind}: {error}")


def not_found(kind: NodeKind, node: int) -> NotFoundError:
    """Return the error of section 4.4.4.2: "Volume 18819 could not be found."."""
    return NotFoundError(f"{kind.capitalize()} {shown_number(node)} could not be found.")


# -- what a request may say --------------------------------------------------------------------


def check_size(size_gib: int) -> int:
    """Return a size that a volume may have; raise InvalidRequestError otherwise."""
    if not MIN_SIZE_GIB <= size_gib <= MAX_SIZE_GIB:
        raise InvalidRequestError(
            f"size {shown_number(size_gib)} is out of range: "
            f"choose {MIN_SIZE_GIB} to {MAX_SIZE_GIB} GiB"
        )
    return size_gib


def exact_size(size_gib: int | None, size_bytes: int | None) -> int | None:
    """Return the size in bytes that a request asks for, in GiB or in bytes; None when it gives no
    size.

    Raises InvalidRequestError when a size is out of range, and when the two contradict each other.
    """
    if size_gib is not None:
        check_size(size_gib)
    if size_bytes is None:
        return None if size_gib is None else size_gib * GIB
    check_volume_size(size_bytes)
    if size_gib is not None and size_gib != size_in_gib(size_bytes):
        raise InvalidRequestError(
            f"size {size_gib} and size_bytes {size_bytes} contradict each other: "
            f"{size_bytes} bytes are {size_in_gib(size_bytes)} GiB, rounded up"
        )
    return size_bytes


def check_one_source(new: NewVolume) -> None:
    """Check that a new volume is made of one thing at most. Raises InvalidRequestError."""
    given = (new.snapshot_id, new.image_id, new.source_volume)
    if sum(source is not None for source in given) > 1:
        raise InvalidRequestError("give one of snapshot_id, imageRef and source_volid")


def clone_size(source: VolumeId, source_bytes: int, new: NewVolume) -> int:
    """Return the size in bytes of a clone: the source's, unless a larger one is asked for. Raises
    InvalidRequestError for a smaller one."""
    wanted = exact_size(new.size_gib, new.size_bytes)
    same = new.size_bytes is None and new.size_gib == size_in_gib(source_bytes)
    if wanted is None or same:
        return source_bytes
    if wanted < source_bytes:
        raise InvalidRequestError(
            f"volume {source} has {format_size(source_bytes)}; a clone of it cannot be smaller"
        )
    return wanted


def check_offset(offset: int) -> int:
    """Return an offset in bytes; one that no volume reaches becomes the end of the largest. Raise
    InvalidRequestError for a negative one."""
    if offset < 0:
        raise InvalidRequestError("offset must not be negative")
    return min(offset, MAX_VOLUME_BYTES)


def size_in_gib(size_bytes: int) -> int:
    """Return the size in GiB that is recorded and counted for a pool volume: rounded up."""
    return -(-size_bytes // GIB)


def check_reason(reason: str) -> str:
    """Return the reason of a hold, if it can be stored; raise InvalidRequestError otherwise."""
    if not reason.strip():
        raise InvalidRequestError("a hold needs a reason")
    return check_text("the reason", reason) or ""


def check_text(what: str, text: str | None) -> str | None:
    """Return a display text that can be stored; raise InvalidRequestError otherwise."""
    if text is None:
        return None
    if len(text) > MAX_TEXT_LENGTH:
        raise InvalidRequestError(
            f"{what} has {len(text)} characters; at most {MAX_TEXT_LENGTH} are kept"
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError(f"{what} must be valid Unicode text") from None
    return text


def check_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return metadata that can be stored; raise InvalidRequestError otherwise."""
    if len(metadata) > MAX_METADATA_ITEMS:
        raise InvalidRequestError(
            f"metadata has {len(metadata)} items; at most {MAX_METADATA_ITEMS} are kept"
        )
    for key, value in metadata.items():
        if not key:
            raise InvalidRequestError("metadata has an empty key")
        check_text("a metadata key", key)
        check_text("a metadata value", value)
    return dict(metadata)


def edited_text(what: str, old: str | None, new: str | None) -> str | None:
    """Return a display text after an edit; raise InvalidRequestError for one that cannot be
    stored."""
    return old if new is None else check_text(what, new) or None


def edited_metadata(old: Mapping[str, str], edit: Edit) -> dict[str, str]:
    """Return metadata after an edit.

    Raises InvalidRequestError for what cannot be stored, NotFoundError for an item that is to be
    removed and does not exist.
    """
    if edit.metadata is None:
        return dict(old)
    result = dict(old) if edit.keeps_other_metadata else {}
    for key, value in edit.metadata.items():
        if value is not None:
            result[key] = value
        elif key in old:
            result.pop(key, None)
        else:
            raise NotFoundError(f"Metadata item {key[:MAX_TEXT_LENGTH]} could not be found.")
    return check_metadata(result)


def check_server(server: str) -> str:
    """Return a server's id; raise NotFoundError for what cannot be one."""
    if not is_server_id(server):
        raise NotFoundError("Instance could not be found: malformed server id.")
    return server


def in_id_range(node: int) -> bool:
    """Return whether a number that a client sent can be an id at all."""
    return 0 < node <= MAX_ID


# -- devices (4.4.3, rule 6) -------------------------------------------------------------------


def choose_device(wanted: str | None, taken: Collection[str]) -> str:
    """Return the device for a new attachment of a server that has `taken` already.

    /dev/vdf and /dev/sdf are the same place on a server: the guest's driver chooses the prefix, so
    only the letters count. Raises InvalidRequestError for a name that is no device's, ConflictError
    when its place is taken, OverLimitError when all are.
    """
    places = {_place(device) for device in taken}
    if wanted is not None:
        if _place(wanted) in places:
            raise ConflictError(f"the server has a volume at device {wanted} already")
        return wanted
    for letters in _places():
        if letters not in places:
            return f"/dev/vd{letters}"
    raise OverLimitError("the server has no free device left")


def _place(device: str) -> str:
    match = _DEVICE.fullmatch(device)
    if match is None:
        raise InvalidRequestError(
            f"device {device[:40]!a} is not valid: choose one like /dev/vdf, or none"
        )
    return match[1]


def _places() -> Iterator[str]:
    """b to z, then aa to zz. The first disk is the one that the server boots from."""
    yield from ascii_lowercase[1:]
    for first in ascii_lowercase:
        yield from (first + second for second in ascii_lowercase)


# -- lists -------------------------------------------------------------------------------------


class Listed(Protocol):
    """What a page is cut from."""

    @property
    def id(self) -> int: ...
    @property
    def display_name(self) -> str | None: ...


L = TypeVar("L", bound=Listed)


def check_page(page: Page) -> Page:
    """Return a page that can be cut; raise InvalidRequestError for negative numbers."""
    for what, value in (("limit", page.limit), ("offset", page.offset), ("marker", page.marker)):
        if value is not None and value < 0:
            raise InvalidRequestError(f"{what} must not be negative")
    return page


def cut_page(items: Iterable[L], page: Page) -> list[L]:
    """Return the part of `items` that `page` selects. The items are in the order of their ids."""
    limit = page.limit or None
    left_out = 0
    found: list[L] = []
    for item in items:
        if page.display_name is not None and item.display_name != page.display_name:
            continue
        if page.marker is not None and item.id <= page.marker:
            continue
        if left_out < page.offset:
            left_out += 1
            continue
        found.append(item)
        if len(found) == limit:
            break
    return found
