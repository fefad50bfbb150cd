"""What a gateway does with images, for tests: connect, make them, open them, take their lock."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Self

from bockd.config.rbd import RbdSettings
from bockd.drivers.rbd import images
from bockd.drivers.rbd.binding import rbd
from bockd.drivers.rbd.connection import connect, open_pool
from bockd.drivers.rbd.device import RbdDevice
from bockd.drivers.rbd.events import EventImage
from bockd.drivers.rbd.settings import Options, index_options, volume_options
from bockd.drivers.rbd.volumeimage import CallbackImage, VolumeImage
from bockd.runtime.steps import run_inline


class Gateway:
    """A connection for everything, and one for each volume that is open."""

    def __init__(self, settings: RbdSettings) -> None:
        self._settings = settings
        self._stack = ExitStack()
        self.cluster: Any
        self.ioctx: Any
        self.by_events = False
        """How volumes are opened."""

    def __enter__(self) -> Self:
        self.cluster, self.ioctx = self._connect(index_options(self._settings))
        return self

    def __exit__(self, *_raised: object) -> None:
        self._stack.close()

    def _connect(self, options: Options) -> tuple[Any, Any]:
        cluster = connect(self._settings, options)
        self._stack.callback(cluster.shutdown)
        ioctx = open_pool(cluster, self._settings)
        self._stack.callback(ioctx.close)
        return cluster, ioctx

    def create(self, size_bytes: int) -> str:
        """Make a blank image."""
        name = images.new_name()
        images.create_image(self.ioctx, name, size_bytes)
        return name

    def snap(self, name: str) -> str:
        """Take a snap of an image."""
        snap = images.new_name()
        images.take_snap(self.cluster, self.ioctx, name, snap)
        return snap

    def clone(self, name: str, snap: str, size_bytes: int | None = None) -> str:
        """Make a clone of a snap."""
        clone = images.new_name()
        images.clone_image(self.ioctx, name, snap, clone, size_bytes)
        return clone

    def open(self, name: str, size_bytes: int) -> RbdDevice:
        """Open an image that nobody has open."""
        image = self.open_bare(name)
        images.lock_image(image)
        return RbdDevice(image, "volume 7", size_bytes, read_only=False)

    def take(self, name: str, size_bytes: int) -> RbdDevice:
        """Open an image that another gateway has open, and shut that one out."""
        image = self.open_bare(name)
        for owner in image.lock_get_owners():
            image.lock_break(rbd.RBD_LOCK_MODE_EXCLUSIVE, owner["owner"])
        image.wait_for_latest_osdmap()
        images.lock_image(image)
        return RbdDevice(image, "volume 7", size_bytes, read_only=False)

    def open_bare(self, name: str) -> VolumeImage:
        """Open an image without its lock."""
        kind = EventImage if self.by_events else CallbackImage
        image: VolumeImage = kind(self._settings, volume_options(self._settings), name)
        self._stack.callback(image.close)
        return image

    def open_snap(self, name: str, snap: str, size_bytes: int) -> RbdDevice:
        """Open a snap."""
        image = images.open_image(self.ioctx, name, snap)
        self._stack.callback(image.close)
        return RbdDevice(image, "snapshot 8", size_bytes, read_only=True)

    def grow(self, name: str, device: RbdDevice, size_bytes: int) -> None:
        """Make an image larger, and the device over it."""
        images.grow_image(self.ioctx, name, size_bytes)
        device.grow(size_bytes)

    def close(self, device: RbdDevice) -> None:
        """Close a device. Closing an image twice does nothing."""
        run_inline(device.close())
