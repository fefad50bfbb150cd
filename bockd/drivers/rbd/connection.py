"""Connecting to the cluster, and to the namespace in it that is the pool."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple, TypeVar

from bockd.config.rbd import RbdSettings
from bockd.drivers.rbd.binding import rados
from bockd.drivers.rbd.errors import CEPH_ERRORS, ShutOutError, errno_of, from_ceph_error
from bockd.drivers.rbd.settings import INDEX_TIMEOUT_SECONDS, WHERE_KNOWN
from bockd.errors import BockdError, ClusterUnavailableError, DeniedError
from bockd.publictexts import for_operator

log = logging.getLogger(__name__)
T = TypeVar("T")

HANDED_OVER_SECONDS = 30.0
"""How long one waits for a change of an image that somebody has open: it takes milliseconds, or ten
seconds when an OSD dies without a word."""

MOST_HANDED_OVER = 32
"""Such changes at once. Each has a thread for as long as it lasts."""
MOST_OF_ONE_IMAGE = 4
"""Of these: whose objects do not answer may not keep others from being changed."""


def connect(settings: RbdSettings, options: Mapping[str, str]) -> rados.Rados:
    """Connect to the cluster. Blocks, for `connect_seconds` at most. Who calls this calls
    `shutdown` of what it returns.

    Raises UnavailableError, also when a file that [rbd] names is missing; DeniedError.
    """
    with connecting(settings):
        cluster = rados.Rados(
            conffile=str(settings.conf_file), rados_id=settings.user, conf=dict(options)
        )
        for key, value in WHERE_KNOWN.items():
            with suppress(rados.ObjectNotFound):
                cluster.conf_set(key, value)
        try:
            cluster.connect()
        except CEPH_ERRORS:
            cluster.shutdown()
            raise
    return cluster


@contextmanager
def connecting(settings: RbdSettings) -> Iterator[None]:
    """Raise what connecting in the `with` block fails with in our terms: never NotFoundError, which
    would be taken for an image that is gone. Raises UnavailableError, DeniedError."""
    for file, option in (
        (settings.conf_file, "rbd.conf_file"),
        (settings.keyring_file, "rbd.keyring_file"),
    ):
        if file is not None and not os.access(file, os.R_OK, effective_ids=True):
            raise ClusterUnavailableError(f"{file}, {option}, cannot be read")
    try:
        yield
    except CEPH_ERRORS as error:
        raise _refusal(error, settings) from error


def open_pool(cluster: rados.Rados, settings: RbdSettings) -> rados.Ioctx:
    """Open the namespace that is the pool. Who calls this calls `close` of what it returns.

    Operations on it fail with ENOSPC when the cluster is full, where they would wait otherwise;
    and what frees space is let through. Raises UnavailableError, also when there
    is no such pool.
    """
    with opening_pool(settings):
        ioctx = cluster.open_ioctx(settings.pool)
    ioctx.set_namespace(settings.namespace)
    ioctx.set_osdmap_full_try()
    return ioctx


@contextmanager
def opening_pool(settings: RbdSettings) -> Iterator[None]:
    """Raise what opening the Ceph pool in the `with` block fails with in our terms, as `connecting`
    does."""
    try:
        yield
    except CEPH_ERRORS as error:
        if errno_of(error) == errno.ENOENT:
            raise ClusterUnavailableError(
                f"the Ceph cluster has no pool {settings.pool!r} (rbd.pool; 'ceph osd pool ls')"
            ) from error
        raise from_ceph_error(error, f"opening the Ceph pool {settings.pool!r}") from error


class Connected(NamedTuple):
    """A connection, and the namespace on it."""

    cluster: rados.Rados
    ioctx: rados.Ioctx


class _Shared:
    """One connection of many users, from the first who needs it until the last has left it."""

    def __init__(self) -> None:
        self.connected: Future[Connected] = Future()
        """For all who wait for it."""
        self.users = 0
        self.ending = ExitStack()


class CommonConnection:
    """A connection that many share: made when it is first needed, and anew after another gateway
    has shut it out, as it does with one that happens to have the lock of an image. The old one is
    ended when nobody uses it any more."""

    def __init__(self, settings: RbdSettings, options: Mapping[str, str]) -> None:
        self._settings = settings
        self._options = options
        self._now: _Shared | None = None
        self._users = 0
        """Of this one and of older ones."""
        self._handed_over = Counter[str]()
        """By image."""
        self._counting = threading.Lock()
        """Nobody waits for the cluster while he has it."""

    @contextmanager
    def use(self) -> Iterator[Connected]:
        """Use the connection for something; what is opened on it is closed before the `with` block
        ends. Blocks. Raises BockdError."""
        with self._counting:
            is_first = self._now is None
            shared = self._now = self._now or _Shared()
            shared.users += 1
            self._users += 1
        try:
            if is_first:
                self._connect(shared)
            yield self._wait_for(shared)
        except ShutOutError:
            self._give_up(shared)
            raise
        finally:
            self._leave(shared)

    def _connect(self, shared: _Shared) -> None:
        """Make a connection, for all who wait for it: they would fail one after the other, each
        after its own time limit."""
        try:
            with ExitStack() as stack:
                cluster = connect(self._settings, self._options)
                stack.callback(cluster.shutdown)
                ioctx = open_pool(cluster, self._settings)
                stack.callback(ioctx.close)
                shared.ending = stack.pop_all()
        except BaseException as error:  # noqa: BLE001 - it belongs to all who wait
            self._give_up(shared)
            shared.connected.set_exception(error)
        else:
            shared.connected.set_result(Connected(cluster, ioctx))

    def _wait_for(self, shared: _Shared) -> Connected:
        try:
            # Connecting has this limit, opening the pool then that of an operation.
            return shared.connected.result(self._settings.connect_seconds + INDEX_TIMEOUT_SECONDS)
        except TimeoutError as error:
            if shared.connected.done():  # in this moment
                return shared.connected.result()
            raise ClusterUnavailableError(
                "the connection to the Ceph cluster that others wait for, too, is not made yet; "
                "'ceph -s' says how the cluster is"
            ) from error

    def _give_up(self, shared: _Shared) -> None:
        """Have those who come from now on use another connection."""
        with self._counting:
            if self._now is shared:
                self._now = None

    def _leave(self, shared: _Shared) -> None:
        with self._counting:
            self._users -= 1
            shared.users -= 1
            is_over = shared.users == 0 and shared is not self._now
        if is_over:
            shared.ending.close()

    def hand_over(self, image: str, doing: str, call: Callable[[Connected], T]) -> T:
        """Change an image that may be open somewhere: librbd hands such a change to whoever has the
        image open, who waits for the cluster without a limit. Blocks, `HANDED_OVER_SECONDS` at
        most. Raises UnavailableError: there is no connection by then, and nothing is done; or it is
        not done by then, and may be done later, in a thread of its own; BockdError. `doing` is for
        the error."""
        outcome: Future[T] = Future()
        with self._counting:
            for number, most, whose in (
                (self._handed_over[image], MOST_OF_ONE_IMAGE, "it"),
                (self._handed_over.total(), MOST_HANDED_OVER, "images"),
            ):
                if number >= most:
                    raise ClusterUnavailableError(
                        f"{doing}: {most} earlier changes of {whose} are not done yet"
                    )
            self._handed_over[image] += 1
        try:
            threading.Thread(
                target=self._hand_over, args=(image, call, outcome), name="handed over", daemon=True
            ).start()
        except RuntimeError as error:
            self._end_handing_over(image)
            raise ClusterUnavailableError(f"{doing}: no thread can be started") from error
        try:
            return outcome.result(HANDED_OVER_SECONDS)
        except TimeoutError as error:
            late = f"after {HANDED_OVER_SECONDS:g} s"
            if outcome.cancel():
                raise ClusterUnavailableError(
                    f"{doing}: nothing is done, for there is no connection to the Ceph cluster "
                    f"{late}; 'ceph -s' says how it is"
                ) from error
            if outcome.done():  # in this moment, or it is the change that says so
                return outcome.result()
            raise ClusterUnavailableError(
                f"{doing}: it is not done {late}, and may be done later; 'ceph -s' says how the "
                "Ceph cluster is"
            ) from error

    def _hand_over(self, image: str, call: Callable[[Connected], T], outcome: Future[T]) -> None:
        try:
            with self.use() as connected:
                _check_waited_for(outcome)
                result = call(connected)
        except BaseException as error:  # noqa: BLE001 - it belongs to who waits
            self._end_handing_over(image)
            with suppress(InvalidStateError):  # nobody does
                outcome.set_exception(error)
        else:
            self._end_handing_over(image)
            outcome.set_result(result)

    def _end_handing_over(self, image: str) -> None:
        with self._counting:
            self._handed_over[image] -= 1
            if not self._handed_over[image]:
                del self._handed_over[image]

    def close(self) -> None:
        """End it. Nobody uses it, and nothing that was opened with it is open: what is under way on
        a connection that ends never comes to its end, and nobody is told. So it stays while a
        change lasts that nobody waits for any more."""
        with self._counting:
            shared, handed_over = self._now, self._handed_over.total()
            assert self._users <= handed_over
            if not handed_over:
                self._now = None
        if handed_over:
            log.warning("%d changes of images are not waited for", handed_over)
        elif shared is not None:
            shared.ending.close()


def _check_waited_for(outcome: Future[Any]) -> None:
    """Raise UnavailableError if whoever waited for an outcome has given up; else he waits from now
    on for what is done."""
    if not outcome.set_running_or_notify_cancel():
        raise ClusterUnavailableError("nobody waits for it any more")


def _refusal(error: Exception, settings: RbdSettings) -> BockdError:
    user = f"client.{settings.user}"
    number = errno_of(error)
    if number in (errno.EACCES, errno.EPERM):
        return for_operator(
            DeniedError(f"the Ceph cluster does not know {user} by the key in its keyring")
        )
    if number == errno.ENOENT:
        return ClusterUnavailableError(
            f"no keyring has a key of {user}: rbd.keyring_file says which does ({error})"
        )
    if number == errno.ETIMEDOUT:
        return ClusterUnavailableError(
            f"no monitor of the Ceph cluster has answered within {settings.connect_seconds} s "
            f"(rbd.connect_seconds; mon_host in {settings.conf_file})"
        )
    return from_ceph_error(error, f"connecting to the Ceph cluster as {user}")
