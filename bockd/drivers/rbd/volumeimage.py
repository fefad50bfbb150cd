"""Opening the image of a volume for writing, on a connection of its own: by events where the
distribution's librbd has them (`events.py`), otherwise by callbacks.

The lock of an image belongs to the opening, not to the connection. So what has the lock is also
what reads and writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any, Protocol

from bockd.config.rbd import RbdSettings
from bockd.drivers.rbd.binding import rbd
from bockd.drivers.rbd.completions import Image
from bockd.drivers.rbd.connection import connect, open_pool
from bockd.drivers.rbd.errors import named
from bockd.drivers.rbd.settings import Options, Override, refuse_overrides, volume_options
from bockd.errors import NotSupportedError

try:
    from bockd.drivers.rbd.events import EventImage
except NotSupportedError:
    by_events = False
else:
    by_events = True
"""Whether images are opened by events."""


class VolumeImage(Image, Protocol):
    """An open image and its connection. Everything but `aio_*` blocks, and raises what Ceph's
    Python module does."""

    def get_name(self) -> str: ...

    def size(self) -> int:
        """Return its size in bytes, also after somebody has made it larger."""
        ...

    def lock_acquire(self, mode: int, /) -> None: ...

    def lock_get_owners(self) -> Iterable[Mapping[str, Any]]: ...

    def lock_break(self, mode: int, owner: str, /) -> None: ...

    def watchers_list(self) -> Iterable[Mapping[str, Any]]: ...

    def config_list(self) -> Iterable[Override]:
        """Return the options of librbd as they count for the image."""
        ...

    def wait_for_latest_osdmap(self) -> None:
        """Return when the connection has the newest map, and with it the newest blocklist."""
        ...


class CallbackImage:
    """A `VolumeImage` by Ceph's Python module: librbd calls back for each result."""

    # No subclass of rbd.Image: that calls `close` when it is freed, at which an object of a
    # subclass of Python's has lost its attributes, and the process dies.

    def __init__(self, settings: RbdSettings, options: Options, name: str) -> None:
        """Connect, and open the image. Blocks. Raises BockdError: there is no connection; ENOENT:
        there is no image."""
        with ExitStack() as stack:
            self._cluster = connect(settings, options)
            stack.callback(self._cluster.shutdown)
            ioctx = open_pool(self._cluster, settings)
            stack.callback(ioctx.close)
            self._image = image = rbd.Image(ioctx, name)
            self._connection = stack.pop_all()
        self.get_name, self.size = image.get_name, image.size
        self.lock_acquire, self.lock_break = image.lock_acquire, image.lock_break
        self.lock_get_owners, self.watchers_list = image.lock_get_owners, image.watchers_list
        self.config_list = image.config_list
        self.aio_read, self.aio_write = image.aio_read, image.aio_write
        self.aio_flush, self.aio_discard = image.aio_flush, image.aio_discard
        self.aio_write_zeroes, self.diff_iterate = image.aio_write_zeroes, image.diff_iterate

    def wait_for_latest_osdmap(self) -> None:
        """See `VolumeImage`."""
        self._cluster.wait_for_latest_osdmap()

    def close(self) -> None:
        """Close the image when nothing is under way any more, and the connection. Blocks."""
        try:
            self._image.close()
        finally:
            self._connection.close()


def open_volume(settings: RbdSettings, name: str) -> VolumeImage:
    """Open an image for writing, over a connection of its own. Who calls this closes what it
    returns. Blocks. Raises BockdError (NotFoundError: librbd finds no such image, or nothing that
    it needs; UnavailableError, DeniedError; DeviceError: see `refuse_overrides`)."""
    kind = EventImage if by_events else CallbackImage
    options = volume_options(settings)
    with named(f"opening image {name}"), ExitStack() as stack:
        image: VolumeImage = kind(settings, options, name)
        stack.callback(image.close)
        refuse_overrides(settings, options, name, image.config_list())
        stack.pop_all()
        return image
