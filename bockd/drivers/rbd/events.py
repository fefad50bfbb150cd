"""An open image by librbd's C interface: all results that have come are taken at once.

Ceph's Python module has a callback made for each result, in a thread of librbd's, which must have
the interpreter for that. The C interface also writes to an eventfd when there are results, and
gives up to `AT_ONCE` of them in one call. An event loop that runs operations on the image takes
them (`ResultSource` in bockd.runtime.steps); where there is none, a thread of the image's does.

The connection is made here, too: what the Python module opens cannot be shared with C. Everything
raises what the Python module raises, `rbd.OSError`.

Rules that keep memory whole: librbd has a number for each request, never a pointer to an object;
the buffer of a request stays in `_pending` until its result was taken; the image is closed when
nothing is pending, and nobody asks it for results then (`_taking`, `_stopping`).
"""

from __future__ import annotations

import errno
import logging
import os
import select
import threading
from array import array
from collections.abc import Callable, Mapping
from contextlib import suppress
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint64
from itertools import count

from bockd.config.rbd import RbdSettings
from bockd.drivers.rbd.binding import rbd
from bockd.drivers.rbd.completions import OnComplete, Request
from bockd.drivers.rbd.connection import connecting, opening_pool
from bockd.drivers.rbd.librbd import EVENTFD, C, Diff, Option, Pointer, Watcher, checked, failure
from bockd.drivers.rbd.requests import AT_ONCE, begin, requests
from bockd.drivers.rbd.settings import WHERE_KNOWN, Override

log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 0.1
"""Who closes the image leaves results for so long to whoever takes them."""

_MOST_OWNERS = 8
"""A lock that is exclusive has one."""

_MOST_WATCHERS = 32
"""Whoever has the image open, for a moment perhaps: first tried with so many."""

_MOST_OPTIONS = 512
"""There are some hundred, in all releases so far."""

Kept = bytearray | bytes | memoryview | None
"""The buffer of a request."""


class _Done:
    """A request's result."""

    __slots__ = ("_status",)

    def __init__(self, status: int) -> None:
        self._status = status

    def get_return_value(self) -> int:
        return self._status


class EventImage:
    """An image that is open for writing, and a connection of its own."""

    def __init__(self, settings: RbdSettings, options: Mapping[str, str], name: str) -> None:
        """Connect, and open the image. Blocks. Raises BockdError: there is no connection; ENOENT:
        there is no image."""
        self.watched = False
        """See `ResultSource`."""
        self._cluster, self._ioctx, self._image = Pointer(), Pointer(), Pointer()
        self._requests = requests
        self._events = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._pending: dict[int, tuple[Callable[..., object], Kept]] = {}
        self._numbers = count(1)
        self._idle = threading.Event()
        """Set once nothing is pending any more and `_closed` is set."""
        self._closed = self._stopping = False
        self._taking = threading.Lock()
        """Of asking for results, and of who does."""
        self._thread: threading.Thread | None = None
        self._ended = array("q", bytes(2 * 8 * AT_ONCE))
        self._name = name
        try:
            self._open(settings, options, name)
        except BaseException:
            self._disconnect()
            raise

    def _open(self, settings: RbdSettings, options: Mapping[str, str], name: str) -> None:
        with connecting(settings):
            checked("rados_create", byref(self._cluster), settings.user.encode())
            checked("rados_conf_read_file", self._cluster, str(settings.conf_file).encode())
            for key, value in options.items():
                checked("rados_conf_set", self._cluster, key.encode(), value.encode())
            for key, value in WHERE_KNOWN.items():
                C["rados_conf_set"](self._cluster, key.encode(), value.encode())
            checked("rados_connect", self._cluster)
        with opening_pool(settings):
            checked("rados_ioctx_create", self._cluster, settings.pool.encode(), byref(self._ioctx))
        C["rados_ioctx_set_namespace"](self._ioctx, settings.namespace.encode())
        C["rados_set_osdmap_full_try"](self._ioctx)
        checked("rbd_open", self._ioctx, name.encode(), byref(self._image), None)
        checked("rbd_set_image_notification", self._image, self._events, EVENTFD)
        assert self._image.value is not None
        self._handle = self._image.value

    def close(self) -> None:
        """Close the image when nothing is under way any more, and the connection. Blocks. Not to be
        called by an event loop that takes its results."""
        if self._closed:
            return
        # Who begins a request looks at this after it has made it pending; so either it is waited
        # for here, or it is refused there.
        self._closed = True
        if self._pending:
            self.attend()
            while not self._idle.wait(_PATIENCE_SECONDS):
                self.take()
        with self._taking:
            self._stopping = True
            thread = self._thread
        os.eventfd_write(self._events, 1)
        if thread is not None:
            thread.join()
        self._disconnect()

    def _disconnect(self) -> None:
        if self._image.value is not None:
            C["rbd_close"](self._image)
        if self._ioctx.value is not None:
            C["rados_ioctx_destroy"](self._ioctx)
        if self._cluster.value is not None:
            C["rados_shutdown"](self._cluster)
        os.close(self._events)

    # -- the lock ------------------------------------------------------------------------------

    def lock_acquire(self, mode: int) -> None:
        """Take the lock."""
        checked("rbd_lock_acquire", self._image, mode)

    def lock_get_owners(self) -> list[dict[str, object]]:
        """Return who has the lock, as the Python module does."""
        mode, number = c_int(), c_size_t(_MOST_OWNERS)
        owners = (c_char_p * _MOST_OWNERS)()
        try:
            checked("rbd_lock_get_owners", self._image, byref(mode), owners, byref(number))
        except rbd.OSError as error:
            if error.errno == errno.ENOENT:
                return []
            raise
        found = [
            {"mode": mode.value, "owner": (one or b"").decode()} for one in owners[: number.value]
        ]
        C["rbd_lock_get_owners_cleanup"](owners, number)
        return found

    def lock_break(self, mode: int, owner: str) -> None:
        """Take the lock from its owner, and put that one on the blocklist."""
        checked("rbd_lock_break", self._image, mode, owner.encode())

    def watchers_list(self) -> list[dict[str, object]]:
        """Return who has the image open, as the Python module does."""
        room = _MOST_WATCHERS
        while True:
            found, number = (Watcher * room)(), c_size_t(room)
            try:
                checked("rbd_watchers_list", self._image, found, byref(number))
            except rbd.OSError as error:
                if error.errno != errno.ERANGE:
                    raise
                room = 2 * number.value
                continue
            watchers: list[dict[str, object]] = [
                {"addr": (one.addr or b"").decode(), "id": one.id, "cookie": one.cookie}
                for one in found[: number.value]
            ]
            C["rbd_watchers_list_cleanup"](found, number)
            return watchers

    def config_list(self) -> list[Override]:
        """Return the options of librbd as they count for the image, as the Python module does."""
        found, number = (Option * _MOST_OPTIONS)(), c_int(_MOST_OPTIONS)
        checked("rbd_config_image_list", self._image, found, byref(number))
        options: list[Override] = [
            {"name": one.name.decode(), "value": one.value.decode(), "source": one.source}
            for one in found[: number.value]
        ]
        C["rbd_config_image_list_cleanup"](found, number)
        return options

    def wait_for_latest_osdmap(self) -> None:
        """Return when this connection has the newest map, and with it the newest blocklist."""
        checked("rados_wait_for_latest_osdmap", self._cluster)

    # -- what a device asks ----------------------------------------------------------------------

    def get_name(self) -> str:
        """Return the image's name."""
        return self._name

    def size(self) -> int:
        """Return the image's size in bytes, also after somebody has made it larger."""
        size = c_uint64()
        checked("rbd_get_size", self._image, byref(size))
        return size.value

    def aio_read(self, offset: int, length: int, oncomplete: OnComplete, /) -> None:
        """Read into a buffer of its own."""
        self._read(bytearray(length), offset, oncomplete)

    def aio_read_into(self, into: memoryview, offset: int, oncomplete: OnComplete, /) -> None:
        """Read into a buffer, which is kept until the result has come."""
        self._read(into, offset, oncomplete)

    def _read(self, into: bytearray | memoryview, offset: int, oncomplete: OnComplete) -> None:
        number = self._begin(oncomplete, into)
        status = self._requests.read(self._handle, number, offset, into)
        if status < 0:
            self._refused(number, "rbd_aio_read", status)

    def aio_write(self, data: bytes, offset: int, oncomplete: OnComplete, /) -> None:
        """Write; `data` is kept until the result has come."""
        self._write(data, offset, oncomplete)

    def aio_write_from(self, data: memoryview, offset: int, oncomplete: OnComplete, /) -> None:
        """Write from a buffer, which is kept until the result has come, and must not change."""
        if not data.readonly:
            self._write(data, offset, oncomplete)
        elif isinstance(data.obj, bytes) and len(data.obj) == len(data):
            self._write(data.obj, offset, oncomplete)
        else:
            self._write(bytes(data), offset, oncomplete)

    def _write(self, data: bytes | memoryview, offset: int, oncomplete: OnComplete) -> None:
        number = self._begin(oncomplete, data)
        status = self._requests.write(self._handle, number, offset, data)
        if status < 0:
            self._refused(number, "rbd_aio_write", status)

    def aio_flush(self, oncomplete: OnComplete, /) -> None:
        """Flush."""
        self._send("rbd_aio_flush", oncomplete)

    def aio_discard(self, offset: int, length: int, oncomplete: OnComplete, /) -> None:
        """Trim."""
        self._send("rbd_aio_discard", oncomplete, offset, length)

    def aio_write_zeroes(
        self, offset: int, length: int, oncomplete: OnComplete, flags: int, /
    ) -> None:
        """Zero."""
        self._send("rbd_aio_write_zeroes", oncomplete, offset, length, more=(flags, 0))

    def diff_iterate(
        self,
        offset: int,
        length: int,
        from_snapshot: str | None,
        iterate_cb: Callable[[int, int, bool], None],
        include_parent: bool,
        whole_object: bool,
    ) -> None:
        """Call back for each part that exists."""
        assert from_snapshot is None

        def note(start: int, size: int, exists: int, _argument: object) -> int:
            iterate_cb(start, size, bool(exists))
            return 0

        number = self._begin(note, None)
        try:
            checked(
                "rbd_diff_iterate2",
                self._image, None, offset, length, include_parent, whole_object, Diff(note), None,
            )  # fmt: skip
        finally:
            self._finished(number)

    # -- requests --------------------------------------------------------------------------------

    def _send(
        self, name: str, oncomplete: OnComplete, *arguments: int, more: tuple[int, ...] = ()
    ) -> None:
        """Send a request without a buffer; see `begin`."""
        number = self._begin(oncomplete, None)
        status = begin(name, self._handle, number, *arguments, more=more)
        if status < 0:
            self._refused(number, name, status)

    def _begin(self, oncomplete: Callable[..., object], kept: Kept) -> int:
        number = next(self._numbers)
        self._pending[number] = oncomplete, kept
        if self._closed:
            self._finished(number)
            raise rbd.OSError("the image is closed", errno.EBADF)
        if isinstance(oncomplete, Request):
            oncomplete.source = self
        return number

    def _refused(self, number: int, name: str, status: int) -> None:
        """Forget a request that has not begun. Raises its error."""
        self._finished(number)
        raise failure(name, status)

    def _finished(self, number: int) -> tuple[Callable[..., object], Kept]:
        found = self._pending.pop(number)
        if self._closed and not self._pending:
            self._idle.set()
        return found

    # -- results: see ResultSource ---------------------------------------------------------------

    def watch(self) -> int | None:
        """See `ResultSource`."""
        with self._taking:
            if self.watched or self._stopping:
                return None
            self.watched = True
            descriptor = os.dup(self._events)
            os.eventfd_write(self._events, 1)  # the thread sees it, if there is one, and ends
        return descriptor

    def unwatch(self) -> None:
        """See `ResultSource`."""
        self.watched = False
        if self._pending:
            self.attend()

    def attend(self) -> None:
        """See `ResultSource`."""
        with self._taking:
            if self.watched or self._stopping or self._thread is not None:
                return
            thread = threading.Thread(target=self._take_all, daemon=True)
            try:
                thread.start()
            except RuntimeError:
                log.warning("no thread can be started; results of image %s come late", self._name)
            else:
                self._thread = thread

    def take(self) -> bool:
        """See `ResultSource`."""
        with self._taking:
            if self._stopping:
                return False
            with suppress(BlockingIOError):
                os.eventfd_read(self._events)
            results = self._poll()
        for number, status in results:
            try:
                self._answer(number, status)
            except Exception:
                log.exception("a result of image %s reached nobody", self._name)
        return True

    def _poll(self) -> list[tuple[int, int]]:
        """Return the numbers of requests that have ended, and their results."""
        ended = self._ended
        results: list[tuple[int, int]] = []
        found = AT_ONCE
        while found == AT_ONCE:
            found = self._requests.results(self._handle, ended)
            taken = iter(ended[: 2 * found])
            results += zip(taken, taken, strict=True)
        return results

    def _take_all(self) -> None:
        """Take results until the image is closed, or somebody watches."""
        poll = select.poll()
        poll.register(self._events, select.POLLIN)
        while True:
            poll.poll()
            with self._taking:
                if self.watched:
                    self._thread = None
                    return
            if not self.take():
                return

    def _answer(self, number: int, status: int) -> None:
        oncomplete, kept = self._finished(number)
        data = None
        if isinstance(kept, bytearray):
            data = kept[:status] if 0 <= status < len(kept) else kept
        if isinstance(oncomplete, Request):
            oncomplete.end(status, data)
        else:
            oncomplete(_Done(status), data)
