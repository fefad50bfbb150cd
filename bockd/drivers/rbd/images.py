"""Images and their snaps in the cluster: made, cloned, grown, frozen, opened and removed.

What is made here has a random name, and a record of the index names it later; so it may be made
before anything is committed, and what nobody names is swept. A snap is never protected: clones are
of format 2 (`settings.py`), with which a snap that has clones can be removed, and stays hidden in
its image until the last of them is gone.

All of this blocks, and goes on the connection whose operations have a time limit. Any gateway may
do any of it to an image that another one has open: librbd hands what changes an image to the holder
of its lock.
"""

from __future__ import annotations

import errno
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from bockd.drivers.rbd.binding import rados, rbd
from bockd.drivers.rbd.errors import errno_of, named
from bockd.drivers.rbd.extents import OBJECT_BYTES
from bockd.errors import ClusterUnavailableError, DeviceError, InUseError
from bockd.publictexts import for_operator

FEATURES = (
    rbd.RBD_FEATURE_LAYERING
    | rbd.RBD_FEATURE_EXCLUSIVE_LOCK
    | rbd.RBD_FEATURE_OBJECT_MAP
    | rbd.RBD_FEATURE_FAST_DIFF
    | rbd.RBD_FEATURE_DEEP_FLATTEN
)
"""Clones, one writer, which objects exist, and clones that let go of their parent's snaps."""

_ORDER = OBJECT_BYTES.bit_length() - 1

_TRASH = "rbd_trash"
"""The object in which librbd first notes the image that it removes."""

_GONE = (rbd.ImageNotFound, rbd.ObjectNotFound)

_NAME_BYTES = 12
"""No two are ever the same: after a million of names the chance is 1 to 10^17."""


def new_name() -> str:
    """Choose the name of a new image or snap: 24 random hexadecimal digits."""
    return secrets.token_hex(_NAME_BYTES)


def create_image(ioctx: rados.Ioctx, name: str, size_bytes: int) -> None:
    """Make an image that reads as zeros. Raises BockdError (NoSpaceError, UnavailableError)."""
    with named(f"creating image {name}"):
        _make_removable(ioctx)
        rbd.RBD().create(ioctx, name, size_bytes, order=_ORDER, old_format=False, features=FEATURES)


def clone_image(
    ioctx: rados.Ioctx, parent: str, snap: str, name: str, size_bytes: int | None = None
) -> None:
    """Make an image that shows a snap, in constant time; larger than that, if a size says so: what
    is beyond reads as zeros. Raises BockdError (NoSpaceError, UnavailableError)."""
    with named(f"cloning snap {snap} of image {parent}"):
        _make_removable(ioctx)
        rbd.RBD().clone(ioctx, parent, snap, ioctx, name, features=FEATURES, order=_ORDER)
    if size_bytes is not None:
        grow_image(ioctx, name, size_bytes)


def _make_removable(ioctx: rados.Ioctx) -> None:
    """Make what the removal of an image needs. librbd makes it with the first removal, which then
    fails on a full cluster, the very one in which an image has to go (Ceph 16.2.15)."""
    with rados.WriteOpCtx() as op:
        op.new(rados.LIBRADOS_CREATE_IDEMPOTENT)
        ioctx.operate_write_op(op, _TRASH)


@contextmanager
def _changing(doing: str) -> Iterator[None]:
    """Do what `named` does, for a change that needs the image's lock, or whoever has it. Raises
    UnavailableError, too: neither answered in time, which librbd calls a read-only image."""
    with named(doing):
        try:
            yield
        except rbd.ReadOnlyImage as error:
            raise for_operator(
                ClusterUnavailableError(
                    f"{doing}: the Ceph cluster, or who has the image open, does not answer; "
                    "'ceph -s' says how it is"
                )
            ) from error


def grow_image(ioctx: rados.Ioctx, name: str, size_bytes: int) -> None:
    """Make an image this large, unless it is already: it never becomes smaller, though another
    gateway makes it larger meanwhile. Raises BockdError."""
    with _changing(f"growing image {name}"), rbd.Image(ioctx, name) as image:
        if image.size() < size_bytes:
            try:
                image.resize(size_bytes, allow_shrink=False)
            except rbd.InvalidArgument:
                with looking_at(ioctx, name) as now:
                    if now.size() < size_bytes:
                        raise


def take_snap(cluster: rados.Rados, ioctx: rados.Ioctx, name: str, snap: str) -> None:
    """Freeze an image: the snap holds each write that was answered before.

    The image's writes wait from the beginning until the monitors have given the snap a number,
    however long that takes: so not without `ask_monitors`. Raises UnavailableError when they do not
    answer, with nothing done.
    """
    ask_monitors(cluster)
    with _changing(f"taking a snap of image {name}"), rbd.Image(ioctx, name) as image:
        image.create_snap(snap)


def ask_monitors(cluster: rados.Rados) -> None:
    """Return when a quorum of the monitors has answered something. Raises UnavailableError when
    none has in the time that the connection allows."""
    # wait_for_latest_osdmap has no time limit, whatever rados_mon_op_timeout says (Ceph 16.2).
    with named("asking the monitors"):
        cluster.get_cluster_stats()


def remove_snap(cluster: rados.Rados, ioctx: rados.Ioctx, name: str, snap: str) -> None:
    """Remove a snap, unless it or its image is gone already. Raises BockdError; UnavailableError,
    with nothing done, when no monitor answers: who has the image open would wait for one without a
    limit."""
    ask_monitors(cluster)
    with _changing(f"removing snap {snap} of image {name}"):
        try:
            with rbd.Image(ioctx, name) as image:
                image.remove_snap(snap)
        except _GONE:
            if _has_snap(ioctx, name, snap):
                raise


def _has_snap(ioctx: rados.Ioctx, name: str, snap: str) -> bool:
    if not is_there(ioctx, name):
        return False
    with rbd.Image(ioctx, name, read_only=True) as image:
        return any(one["name"] == snap for one in image.list_snaps())


def remove_image(ioctx: rados.Ioctx, name: str) -> bool:
    """Remove an image with all that it holds. Return False if it stays for now: it has snaps, or
    somebody has it open. It is no error if it is gone already. Raises BockdError."""
    with named(f"removing image {name}"):
        # librbd would take the image's lock to look, and has aborted the process there (Ceph
        # 16.2.15, CloseRequest.cc).
        if _has_snaps(ioctx, name):
            return False
        try:
            rbd.RBD().remove(ioctx, name)
        except (rbd.ImageHasSnapshots, rbd.ImageBusy):
            return False
        except _GONE as error:
            if is_there(ioctx, name):
                # librbd says so, too, when it had no room for its note of the removal.
                raise DeviceError(
                    f"image {name} is not removed: Ceph does not find it, and it is there; if the "
                    "cluster is full, it goes when there is room"
                ) from error
    return True


def discard_image(ioctx: rados.Ioctx, name: str) -> None:
    """Remove an image, unless it has snaps: then it goes with the last of them. Raises InUseError:
    somebody has it open; BockdError as `remove_image`."""
    if not remove_image(ioctx, name):
        with named(f"looking for snaps of image {name}"):
            if _has_snaps(ioctx, name):
                return
        raise InUseError(f"image {name} is open somewhere")


def _has_snaps(ioctx: rados.Ioctx, name: str) -> bool:
    """Return whether an image has snaps, hidden ones too. False if it cannot be opened: a removal
    that was interrupted has left it so, or it has lost its parent."""
    try:
        with rbd.Image(ioctx, name, read_only=True) as image:
            return any(True for _ in image.list_snaps())
    except _GONE:
        return False


def open_image(ioctx: rados.Ioctx, name: str, snap: str | None = None) -> rbd.Image:
    """Open an image for writing, or one of its snaps for reading. Who calls this closes what it
    returns. Raises BockdError (NotFoundError, UnavailableError)."""
    with named(f"opening image {name}"):
        return rbd.Image(ioctx, name, snapshot=snap, read_only=snap is not None)


@contextmanager
def looking_at(ioctx: rados.Ioctx, name: str, snap: str | None = None) -> Iterator[rbd.Image]:
    """Open an image, or one of its snaps, only to look at it: whoever has it open is not disturbed.
    Raises BockdError, also for what the `with` block does."""
    with (
        named(f"looking at image {name}"),
        rbd.Image(ioctx, name, snapshot=snap, read_only=True) as image,
    ):
        yield image


def is_there(ioctx: rados.Ioctx, name: str) -> bool:
    """Return whether an image's own objects are there, whatever it needs besides, as its parent: if
    they are, somebody may have it open. Raises BockdError."""
    with named(f"looking whether image {name} is there"):
        try:
            # The length of its id, in four bytes, and the id.
            identity = ioctx.read(f"rbd_id.{name}")[4:].decode()
            ioctx.stat(f"rbd_header.{identity}")
        except rados.ObjectNotFound:
            return False
    return True


class Lockable(Protocol):
    """An image that is open for writing."""

    def lock_acquire(self, mode: int, /) -> None: ...

    def get_name(self) -> str: ...


def lock_image(image: Lockable) -> None:
    """Take the lock of an image. librbd then gives it to nobody who asks, until the image is closed
    or the lock is broken. Raises InUseError: another gateway has it; BockdError."""
    with named("locking an image"):
        try:
            image.lock_acquire(rbd.RBD_LOCK_MODE_EXCLUSIVE)
        except rbd.OSError as error:
            if errno_of(error) != errno.EROFS:  # what librbd says when it has not got it
                raise
            raise InUseError(f"another gateway has image {image.get_name()} open") from error
