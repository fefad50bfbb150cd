"""Removing, in the background, what nothing names any more.

To remove a large image takes minutes, and cannot be cut short. Nobody waits for that, least of all
a daemon that ends: what is not done then, and what fails, is left to the sweep
(bockd.drivers.rbd.sweep). So it is done in threads of its own, by a connection of its own, which is
left open while one of them is still at work.

What has failed is owed: `owes_space` says so, and whoever asks has it tried again, so that a pool
that is nearly full does not go on to delete while nothing of it can be removed. Nobody else tries
again here: that is the sweep's work.

Who removes a snap has the lock of its image meanwhile, if nobody has the image open. So a gateway
that takes the volume keeps its own removals off the image until it has the lock; afterwards librbd
hands them to it. Another gateway that takes the volume shuts this connection out: then what was
under way on it, whichever image it was of, is done once more on a new one.

Of one image one thing is removed after the other, as they were put in: the image last of all.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from bockd.config.rbd import RbdSettings
from bockd.drivers.rbd.connection import CommonConnection, Connected
from bockd.drivers.rbd.errors import ShutOutError
from bockd.drivers.rbd.settings import index_options
from bockd.errors import BockdError

log = logging.getLogger(__name__)

THREADS = 4
"""Removals at once. Each has a number of operations under way in the cluster by itself."""

END_SECONDS = 2.0
"""How long the end waits for what is put in already. Removing a small image takes milliseconds."""

COUNTED_SECONDS = 30.0
"""How long Ceph may take to count what has returned: its OSDs report every five seconds (the
option mgr_stats_period), and let go of snaps' objects in the background."""

AGAIN_SECONDS = 60.0
"""From the first failure to the next try of all that have failed meanwhile: on a full cluster they
fail until somebody makes room."""

OWED_AT_MOST = 100
"""Removals that are tried again. Of more the oldest are left to the sweep alone."""

KEPT_OFF_SECONDS = 1.0
"""How long a taking waits for a removal that is at work: that takes milliseconds. After that it
shuts the removals out, as another gateway would."""

Removal = Callable[[Connected], object]
"""Removes something; done twice, it does nothing the second time. Blocks. Raises BockdError: it is
to be done again."""


class _Waiting(NamedTuple):
    """A removal that was put in."""

    image: str
    doing: str
    removal: Removal


class Removals:
    """The removals of one gateway. Any thread may call this."""

    def __init__(
        self, settings: RbdSettings, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._connection = CommonConnection(settings, index_options(settings))
        self._waiting: dict[str, deque[_Waiting]] = {}
        """By image. Whose turn it was comes last."""
        self._threads = 0
        self._at_work: set[str] = set()
        """Images of which something is being removed."""
        self._taken: Counter[str] = Counter()
        """Images that removals are kept off, and how often."""
        self._owed: deque[_Waiting] = deque(maxlen=OWED_AT_MOST)
        """What has failed, and what was done of the same images since then."""
        self._owed_since = 0.0
        """When the first of these has failed."""
        self._ended = False
        self._changed = threading.Condition()
        self._monotonic = monotonic
        self._noted_at: float | None = None
        """When it was last known that something is to be removed, or was."""

    def put(self, image: str, doing: str, removal: Removal) -> None:
        """Remove an image, or something of it, as soon as a thread is free. `doing` says what, for
        the log."""
        with self._changed:
            if self._ended:
                log.info("%s is left to the next sweep: this gateway ends", doing)
                return
            self._waiting.setdefault(image, deque()).append(_Waiting(image, doing, removal))
            self._noted_at = self._monotonic()
        self._begin()

    def expect(self) -> None:
        """Take notice that something is about to be put in."""
        with self._changed:
            self._noted_at = self._monotonic()

    def owe(self, image: str, doing: str, removal: Removal) -> None:
        """Treat a removal that could not be put in as one that has failed."""
        with self._changed:
            self._noted_at = self._monotonic()
            self._fail(_Waiting(image, doing, removal))

    def owes_space(self) -> bool:
        """Return whether something is to be removed, has failed to be, or may not be counted as
        free yet since it was removed a moment ago. Have what has failed tried again, if
        `AGAIN_SECONDS` have passed: in the background."""
        with self._changed:
            if self._noted_at is None:
                return False
            now = self._monotonic()
            if self._owed and now >= self._owed_since + AGAIN_SECONDS and not self._ended:
                self._put_again()
            owes = bool(self._owed) or not self._is_done()
            owes = owes or now < self._noted_at + COUNTED_SECONDS
        self._begin()
        return owes

    @contextmanager
    def kept_off(self, image: str) -> Iterator[None]:
        """Begin no removal of an image or its snaps in the `with` block. Blocks first until the one
        that is at work is done, `KEPT_OFF_SECONDS` at most."""
        with self._changed:
            self._taken[image] += 1
            self._changed.wait_for(lambda: image not in self._at_work, KEPT_OFF_SECONDS)
        try:
            yield
        finally:
            with self._changed:
                self._taken[image] -= 1
                if not self._taken[image]:
                    del self._taken[image]
            self._begin()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until nothing is left to do. Return False when the time was over before."""
        with self._changed:
            return self._changed.wait_for(self._is_done, seconds)

    def close(self) -> None:
        """Give what has been put in a moment to be done, and begin nothing more."""
        with self._changed:
            self._changed.wait_for(self._is_done, END_SECONDS)
            self._ended = True
            left = [one.doing for some in self._waiting.values() for one in some]
            self._waiting.clear()
            at_work = len(self._at_work)
        for doing in left:
            log.info("%s is left to the next sweep: this gateway ends", doing)
        if at_work:
            log.info("%d removals are not waited for; the next sweep goes on with them", at_work)
        else:
            self._connection.close()

    def _fail(self, one: _Waiting) -> None:
        if not self._owed:
            self._owed_since = self._monotonic()
        self._owed.append(one)

    def _put_again(self) -> None:
        """Put in what is owed, in its order, before what waits of the same images."""
        for one in reversed(self._owed):
            self._waiting.setdefault(one.image, deque()).appendleft(one)
        self._owed.clear()

    def _is_done(self) -> bool:
        return not self._at_work and not self._waiting

    def _begin(self) -> None:
        """Have a thread more look for something to do, if there is something."""
        with self._changed:
            if self._threads == THREADS or self._first() is None:
                return
            self._threads += 1
        try:
            # Python waits for none of these at its end.
            threading.Thread(target=self._run, name="removals", daemon=True).start()
        except RuntimeError:
            with self._changed:
                self._threads -= 1
            log.warning("no thread can be started; what is to be removed is put off")

    def _run(self) -> None:
        while (found := self._next()) is not None:
            done = False
            try:
                done = try_to(found.doing, partial(self._remove, found.removal))
            except Exception:
                log.exception("%s failed", found.doing)
            with self._changed:
                self._at_work.remove(found.image)
                # An image may have stayed because of a snap that is owed: so it is its turn again
                # after that.
                if not done or any(one.image == found.image for one in self._owed):
                    self._fail(found)
                self._noted_at = self._monotonic()
                self._changed.notify_all()

    def _remove(self, removal: Removal) -> None:
        try:
            self._remove_once(removal)
        except ShutOutError as error:
            log.info("once more, since another gateway has taken a volume meanwhile: %s", error)
            self._remove_once(removal)

    def _remove_once(self, removal: Removal) -> None:
        with self._connection.use() as connected:
            removal(connected)

    def _next(self) -> _Waiting | None:
        with self._changed:
            image = self._first()
            if image is None:
                self._threads -= 1
                return None
            waiting = self._waiting.pop(image)
            found = waiting.popleft()
            if waiting:
                self._waiting[image] = waiting
            self._at_work.add(image)
            return found

    def _first(self) -> str | None:
        """The image whose turn it is. None: nothing can be begun now."""
        free = (one for one in self._waiting if one not in self._at_work and not self._taken[one])
        return next(free, None)


def try_to(doing: str, operation: Callable[[], object]) -> bool:
    """Do what the sweep does otherwise: log an error instead of raising it. Return whether there
    was none."""
    try:
        operation()
    except BockdError as error:
        log.warning("%s is put off: %s", doing, error)
        return False
    return True
