"""The images of a namespace, as the sweep asks for them: implements `ImageStore` of
bockd.drivers.rbd.sweep.

It has connections of its own. Whoever removes a snap, or flattens an image that nobody has open,
has that image's lock meanwhile, and another gateway that takes the volume shuts it out; that is to
meet nothing else. (If a gateway has the image open, that one does it when it is asked.) Flattening
has another connection than all else, since it may take hours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime

from bockd.config.rbd import RbdSettings
from bockd.drivers.rbd.binding import rados, rbd
from bockd.drivers.rbd.connection import CommonConnection
from bockd.drivers.rbd.errors import named
from bockd.drivers.rbd.images import looking_at, remove_image, remove_snap
from bockd.drivers.rbd.settings import flattening_options, index_options
from bockd.drivers.rbd.sweep import Seen
from bockd.errors import NotFoundError


class RbdImageStore:
    """Ended by `close`."""

    def __init__(self, settings: RbdSettings) -> None:
        self._images = CommonConnection(settings, index_options(settings))
        self._flattening = CommonConnection(settings, flattening_options(settings))

    def close(self) -> None:
        """End the connections. Nothing else is called meanwhile, or after that."""
        with ExitStack() as stack:
            stack.callback(self._images.close)
            stack.callback(self._flattening.close)

    def names(self) -> list[str]:
        """See the contract."""
        with self._images.use() as (_, ioctx), named("listing the images"):
            found: list[str] = rbd.RBD().list(ioctx)
            return found

    def look(self, image: str) -> Seen:
        """See the contract. librbd lists an image also while it is only an entry of its trash: so
        its removal begins, and the data goes after that."""
        with self._images.use() as (_, ioctx):
            try:
                with looking_at(ioctx, image) as opened:
                    return _seen(opened)
            except NotFoundError:
                return Seen(math.inf, {})

    def remove_snap(self, image: str, snap: str) -> None:
        """See the contract."""
        self._images.hand_over(
            image,
            f"removing snap {snap} of image {image}",
            lambda connected: remove_snap(connected.cluster, connected.ioctx, image, snap),
        )

    def remove(self, image: str) -> bool:
        """See the contract."""
        with self._images.use() as (_, ioctx):
            return remove_image(ioctx, image)

    def depth(self, image: str) -> int:
        """See the contract."""
        depth, below = 0, image
        with self._images.use() as (_, ioctx):
            while (parent := _parent(ioctx, below)) is not None:
                depth, below = depth + 1, parent
        return depth

    def flatten(self, image: str, progress: Callable[[int], None]) -> None:
        """See the contract."""

        def on_progress(done: int, total: int) -> int:
            progress(done * 100 // max(1, total))
            return 0

        with (
            self._flattening.use() as (_, ioctx),
            named(f"flattening image {image}"),
            rbd.Image(ioctx, image) as opened,
        ):
            opened.flatten(on_progress)


def _seen(image: rbd.Image) -> Seen:
    snaps = list(image.list_snaps())
    ours = [one for one in snaps if one["namespace"] == rbd.RBD_SNAP_NAMESPACE_TYPE_USER]
    return Seen(
        _seconds(image.create_timestamp()),
        {one["name"]: _seconds(image.get_snap_timestamp(one["id"])) for one in ours},
        is_needed=len(ours) < len(snaps),
    )


def _parent(ioctx: rados.Ioctx, image: str) -> str | None:
    """The image that an image is a clone of. None: of none, or it is gone."""
    try:
        with looking_at(ioctx, image) as opened:
            try:
                return str(opened.get_parent_image_spec()["image_name"])
            except rbd.ImageNotFound:
                return None
    except NotFoundError:
        return None


def _seconds(utc: datetime) -> float:
    return utc.replace(tzinfo=UTC).timestamp()
