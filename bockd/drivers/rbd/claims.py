"""Claims on images of a real cluster: implements `Claim` of bockd.drivers.rbd.taking."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext

from bockd.config.rbd import RbdSettings
from bockd.drivers.rbd.binding import rados, rbd
from bockd.drivers.rbd.connection import open_pool
from bockd.drivers.rbd.errors import CEPH_ERRORS, errno_of, named
from bockd.drivers.rbd.images import ask_monitors, is_there, lock_image
from bockd.drivers.rbd.taking import ImageGoneError
from bockd.drivers.rbd.volumeimage import VolumeImage, open_volume
from bockd.errors import DamagedError, InUseError, NotFoundError

_NOT_THE_OWNER = frozenset({errno.EBUSY, errno.ENOENT})
"""What breaking a lock fails with that somebody else has, or nobody."""

KeepOff = Callable[[str], AbstractContextManager[None]]
"""Keeps this gateway's own work off an image, which would have its lock otherwise."""


def keep_nothing_off(_image: str) -> AbstractContextManager[None]:
    """Return at once: nothing else is done to images (`KeepOff`)."""
    return nullcontext()


class RbdClaim:
    """An open image and its connection, whose operations have no time limit."""

    def __init__(
        self,
        settings: RbdSettings,
        limited: rados.Rados,
        name: str,
        keep_off: KeepOff = keep_nothing_off,
    ) -> None:
        """Connect and open. Blocks. `limited` is the connection whose operations have a limit.
        Raises ImageGoneError, DamagedError: the image is there, but not all that it needs;
        BockdError."""
        self._limited = limited
        with ExitStack() as stack:
            stack.enter_context(keep_off(name))
            self.image = _opened(settings, limited, name)
            """What the device is made over: the lock is this opening's alone."""
            self._until_locked = stack.pop_all()

    def owner(self) -> str | None:
        """See the contract."""
        with named("looking who has an image"):
            return next((str(one["owner"]) for one in self.image.lock_get_owners()), None)

    def is_watching(self, owner: str) -> bool:
        """See the contract."""
        with named("looking who has an image open"):
            return any(one["addr"] == owner for one in self.image.watchers_list())

    def break_lock(self, owner: str) -> None:
        """See the contract. Raises UnavailableError, with nothing done: no monitor answers."""
        ask_monitors(self._limited)
        with named("shutting a gateway out"):
            try:
                self.image.lock_break(rbd.RBD_LOCK_MODE_EXCLUSIVE, owner)
            except CEPH_ERRORS as error:
                if errno_of(error) not in _NOT_THE_OWNER:
                    raise

    def catch_up(self) -> None:
        """See the contract. Raises UnavailableError: no monitor answers."""
        # What follows would wait without a limit.
        ask_monitors(self._limited)
        with named("asking for the latest map"):
            self.image.wait_for_latest_osdmap()

    def lock(self) -> bool:
        """See the contract. librbd asks the owner, and may wait for one that hangs and has come
        since we looked."""
        try:
            lock_image(self.image)
        except InUseError:
            return False
        self._until_locked.close()
        return True

    def close(self) -> None:
        """See the contract. It waits as long as the cluster makes it wait."""
        with self._until_locked, named("closing an image"):
            self.image.close()


def _opened(settings: RbdSettings, limited: rados.Rados, name: str) -> VolumeImage:
    try:
        return open_volume(settings, name)
    except NotFoundError as error:
        with open_pool(limited, settings) as ioctx:
            if not is_there(ioctx, name):
                raise ImageGoneError(
                    f"image {name} is not in the Ceph pool any more, and data is lost; 'bockd "
                    "check' tells what else is missing"
                ) from error
        raise DamagedError(
            f"image {name} is there, but not all that it needs, as its parent: {error}"
        ) from error
