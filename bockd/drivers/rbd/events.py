"""An open image by librbd's C interface: all results that have come are taken at once.

Ceph's Python module has a callback made for each result, in a thread of librbd's, which must have
the interpreter for that. The C interface also writes to an eventfd when there are results, and
gives up to `_AT_ONCE` of them in one call. A thread waits for that here, one for each image.

The connection is made here, too: what the Python module opens cannot be shared with C. Everything
raises what the Python module raises, `rbd.OSError`.

Rules that keep memory whole: librbd has a number for each request, never a pointer to an object;
the buffer of a request stays in `_pending` until its result was taken; the image is closed when
nothing is pending, and nobody but the thread asks it for results.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import threading
from collections.abc import Callable
from ctypes import POINTER, byref, c_char, c_char_p, c_int, c_size_t, c_ssize_t, c_uint8, c_uint64
from itertools import count
from typing import Any

from bockd.config.rbd import RbdSettings
from bockd.drivers.rbd.binding import rbd
from bockd.drivers.rbd.completions import OnComplete
from bockd.drivers.rbd.errors import named
from bockd.drivers.rbd.settings import Options, volume_options

log = logging.getLogger(__name__)

_POINTER = ctypes.c_void_p

_AT_ONCE = 128
"""More than a connection has under way."""

_EVENTFD = 2
"""EVENT_TYPE_EVENTFD in librbd.h."""

_MOST_OWNERS = 8
"""A lock that is exclusive has one."""

_DIFF = ctypes.CFUNCTYPE(c_int, c_uint64, c_size_t, c_int, _POINTER)

_RADOS: dict[str, list[Any]] = {
    "rados_create": [POINTER(_POINTER), c_char_p],
    "rados_conf_read_file": [_POINTER, c_char_p],
    "rados_conf_set": [_POINTER, c_char_p, c_char_p],
    "rados_connect": [_POINTER],
    "rados_shutdown": [_POINTER],
    "rados_wait_for_latest_osdmap": [_POINTER],
    "rados_ioctx_create": [_POINTER, c_char_p, POINTER(_POINTER)],
    "rados_ioctx_destroy": [_POINTER],
    "rados_ioctx_set_namespace": [_POINTER, c_char_p],
    "rados_set_osdmap_full_try": [_POINTER],
}
_RBD: dict[str, list[Any]] = {
    "rbd_open": [_POINTER, c_char_p, POINTER(_POINTER), c_char_p],
    "rbd_close": [_POINTER],
    "rbd_get_size": [_POINTER, POINTER(c_uint64)],
    "rbd_set_image_notification": [_POINTER, c_int, c_int],
    "rbd_lock_acquire": [_POINTER, c_int],
    "rbd_lock_get_owners": [_POINTER, POINTER(c_int), POINTER(c_char_p), POINTER(c_size_t)],
    "rbd_lock_get_owners_cleanup": [POINTER(c_char_p), c_size_t],
    "rbd_lock_break": [_POINTER, c_int, c_char_p],
    "rbd_diff_iterate2": [
        _POINTER, c_char_p, c_uint64, c_uint64, c_uint8, c_uint8, _DIFF, _POINTER,
    ],
    "rbd_aio_read": [_POINTER, c_uint64, c_size_t, _POINTER, _POINTER],
    "rbd_aio_write": [_POINTER, c_uint64, c_size_t, c_char_p, _POINTER],
    "rbd_aio_flush": [_POINTER, _POINTER],
    "rbd_aio_discard": [_POINTER, c_uint64, c_uint64, _POINTER],
    "rbd_aio_write_zeroes": [_POINTER, c_uint64, c_size_t, _POINTER, c_int, c_int],
}  # fmt: skip
_QUICK: dict[str, list[Any]] = {
    "rbd_aio_create_completion": [_POINTER, _POINTER, POINTER(_POINTER)],
    "rbd_aio_get_arg": [_POINTER],
    "rbd_aio_get_return_value": [_POINTER],
    "rbd_aio_release": [_POINTER],
    "rbd_poll_io_events": [_POINTER, POINTER(_POINTER), c_int],
}
"""Those that wait for nothing: they keep the interpreter."""

_RETURNS: dict[str, Any] = {
    "rados_ioctx_destroy": None,
    "rados_ioctx_set_namespace": None,
    "rados_set_osdmap_full_try": None,
    "rados_shutdown": None,
    "rbd_lock_get_owners_cleanup": None,
    "rbd_aio_get_arg": _POINTER,
    "rbd_aio_get_return_value": c_ssize_t,
    "rbd_aio_release": None,
}


def _functions() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for library, functions in (
        (ctypes.CDLL("librados.so.2"), _RADOS),
        (ctypes.CDLL("librbd.so.1"), _RBD),
        (ctypes.PyDLL("librbd.so.1"), _QUICK),
    ):
        for name, arguments in functions.items():
            function = getattr(library, name)
            function.argtypes = arguments
            function.restype = _RETURNS.get(name, c_int)
            found[name] = function
    return found


_C = _functions()
_create_completion = _C["rbd_aio_create_completion"]


def _checked(name: str, *arguments: Any) -> int:
    status: int = _C[name](*arguments)
    if status < 0:
        raise rbd.OSError(f"{name}: {os.strerror(-status)}", -status)
    return status


class _Done:
    """A request's result."""

    __slots__ = ("_status",)

    def __init__(self, status: int) -> None:
        self._status = status

    def get_return_value(self) -> int:
        return self._status


def open_volume(settings: RbdSettings, name: str) -> EventImage:
    """Open an image for writing, over a connection of its own. Who calls this closes what it
    returns. Blocks. Raises BockdError (NotFoundError, UnavailableError, DeniedError)."""
    with named(f"opening image {name}"):
        return EventImage(settings, volume_options(settings), name)


class EventImage:
    """An image that is open for writing, and a connection of its own."""

    def __init__(self, settings: RbdSettings, options: Options, name: str) -> None:
        """Connect, and open the image. Blocks."""
        self._cluster, self._ioctx, self._image = _POINTER(), _POINTER(), _POINTER()
        self._events = os.eventfd(0, os.EFD_CLOEXEC)
        self._pending: dict[int, tuple[Callable[..., object], bytearray | bytes | None]] = {}
        self._numbers = count(1)
        self._idle = threading.Event()
        """Set once nothing is pending any more and `_closed` is set."""
        self._closed = self._stopping = False
        self._name = name
        try:
            self._open(settings, options, name)
            self._thread = threading.Thread(target=self._take_results, daemon=True)
            self._thread.start()
        except BaseException:
            self._disconnect()
            raise

    def _open(self, settings: RbdSettings, options: Options, name: str) -> None:
        _checked("rados_create", byref(self._cluster), settings.user.encode())
        _checked("rados_conf_read_file", self._cluster, str(settings.conf_file).encode())
        for key, value in options.items():
            _checked("rados_conf_set", self._cluster, key.encode(), value.encode())
        _checked("rados_connect", self._cluster)
        _checked("rados_ioctx_create", self._cluster, settings.pool.encode(), byref(self._ioctx))
        _C["rados_ioctx_set_namespace"](self._ioctx, settings.namespace.encode())
        _C["rados_set_osdmap_full_try"](self._ioctx)
        _checked("rbd_open", self._ioctx, name.encode(), byref(self._image), None)
        _checked("rbd_set_image_notification", self._image, self._events, _EVENTFD)

    def close(self) -> None:
        """Close the image when nothing is under way any more, and the connection. Blocks."""
        if self._closed:
            return
        # Who begins a request looks at this after it has made it pending; so either it is waited
        # for here, or it is refused there.
        self._closed = True
        if self._pending:
            self._idle.wait()
        self._stopping = True
        os.eventfd_write(self._events, 1)
        self._thread.join()
        self._disconnect()

    def _disconnect(self) -> None:
        if self._image.value is not None:
            _C["rbd_close"](self._image)
        if self._ioctx.value is not None:
            _C["rados_ioctx_destroy"](self._ioctx)
        if self._cluster.value is not None:
            _C["rados_shutdown"](self._cluster)
        os.close(self._events)

    # -- the lock ------------------------------------------------------------------------------

    def lock_acquire(self, mode: int) -> None:
        """Take the lock."""
        _checked("rbd_lock_acquire", self._image, mode)

    def lock_get_owners(self) -> list[dict[str, object]]:
        """Return who has the lock, as the Python module does."""
        mode, number = c_int(), c_size_t(_MOST_OWNERS)
        owners = (c_char_p * _MOST_OWNERS)()
        try:
            _checked("rbd_lock_get_owners", self._image, byref(mode), owners, byref(number))
        except rbd.OSError as error:
            if error.errno == errno.ENOENT:
                return []
            raise
        found = [
            {"mode": mode.value, "owner": (one or b"").decode()} for one in owners[: number.value]
        ]
        _C["rbd_lock_get_owners_cleanup"](owners, number)
        return found

    def lock_break(self, mode: int, owner: str) -> None:
        """Take the lock from its owner, and put that one on the blocklist."""
        _checked("rbd_lock_break", self._image, mode, owner.encode())

    def wait_for_latest_osdmap(self) -> None:
        """Return when this connection has the newest map, and with it the newest blocklist."""
        _checked("rados_wait_for_latest_osdmap", self._cluster)

    # -- what a device asks ----------------------------------------------------------------------

    def get_name(self) -> str:
        """Return the image's name."""
        return self._name

    def aio_read(self, offset: int, length: int, oncomplete: OnComplete, /) -> None:
        """Read into a buffer of its own."""
        data = bytearray(length)
        into = (c_char * length).from_buffer(data)
        # The address stays what it is for as long as nobody resizes the buffer, which nobody has.
        self._send("rbd_aio_read", oncomplete, data, offset, length, ctypes.addressof(into))

    def aio_write(self, data: bytes, offset: int, oncomplete: OnComplete, /) -> None:
        """Write; `data` is kept until the result has come."""
        self._send("rbd_aio_write", oncomplete, data, offset, len(data), data)

    def aio_flush(self, oncomplete: OnComplete, /) -> None:
        """Flush."""
        self._send("rbd_aio_flush", oncomplete, None)

    def aio_discard(self, offset: int, length: int, oncomplete: OnComplete, /) -> None:
        """Trim."""
        self._send("rbd_aio_discard", oncomplete, None, offset, length)

    def aio_write_zeroes(
        self, offset: int, length: int, oncomplete: OnComplete, flags: int, /
    ) -> None:
        """Zero."""
        number, completion = self._begin(oncomplete, None), _POINTER()
        _create_completion(number, None, byref(completion))
        self._submit(
            "rbd_aio_write_zeroes", number, completion, offset, length, completion, flags, 0
        )

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
            _checked(
                "rbd_diff_iterate2",
                self._image, None, offset, length, include_parent, whole_object, _DIFF(note), None,
            )  # fmt: skip
        finally:
            self._finished(number)

    # -- requests --------------------------------------------------------------------------------

    def _send(
        self, name: str, oncomplete: OnComplete, kept: bytearray | bytes | None, *arguments: Any
    ) -> None:
        number, completion = self._begin(oncomplete, kept), _POINTER()
        _create_completion(number, None, byref(completion))
        self._submit(name, number, completion, *arguments, completion)

    def _begin(self, oncomplete: Callable[..., object], kept: bytearray | bytes | None) -> int:
        number = next(self._numbers)
        self._pending[number] = oncomplete, kept
        if self._closed:
            self._finished(number)
            raise rbd.OSError("the image is closed", errno.EBADF)
        return number

    def _submit(self, name: str, number: int, completion: ctypes.c_void_p, *arguments: Any) -> None:
        try:
            _checked(name, self._image, *arguments)
        except rbd.OSError:
            _C["rbd_aio_release"](completion)
            self._finished(number)
            raise

    def _finished(self, number: int) -> tuple[Callable[..., object], bytearray | bytes | None]:
        found = self._pending.pop(number)
        if self._closed and not self._pending:
            self._idle.set()
        return found

    def _take_results(self) -> None:
        ended = (_POINTER * _AT_ONCE)()
        while True:
            os.eventfd_read(self._events)
            if self._stopping:
                return
            found = _AT_ONCE
            while found == _AT_ONCE:
                found = _C["rbd_poll_io_events"](self._image, ended, _AT_ONCE)
                for completion in ended[:found]:
                    try:
                        self._answer(completion)
                    except Exception:
                        log.exception("a result of image %s reached nobody", self._name)

    def _answer(self, completion: int | None) -> None:
        number = _C["rbd_aio_get_arg"](completion)
        status = _C["rbd_aio_get_return_value"](completion)
        _C["rbd_aio_release"](completion)
        oncomplete, kept = self._finished(number)
        if isinstance(kept, bytearray):
            oncomplete(_Done(status), kept[:status] if 0 <= status < len(kept) else kept)
        else:
            oncomplete(_Done(status))
