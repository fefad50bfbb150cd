"""librados and librbd by their C interface, with ctypes: what an image by events needs of them.

Ceph's Python module has no events, and what it opens cannot be shared with C. Importing this raises
NotSupportedError where the distribution's libraries lack something of it.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import (
    POINTER,
    Structure,
    c_char_p,
    c_int,
    c_int64,
    c_size_t,
    c_ssize_t,
    c_uint8,
    c_uint64,
)
from typing import Any

from bockd.drivers.rbd.binding import rbd
from bockd.errors import NotSupportedError

Pointer = ctypes.c_void_p

EVENTFD = 2
"""EVENT_TYPE_EVENTFD in librbd.h."""


class Watcher(Structure):
    """rbd_image_watcher_t."""

    _fields_ = (("addr", c_char_p), ("id", c_int64), ("cookie", c_uint64))


class Option(Structure):
    """rbd_config_option_t."""

    _fields_ = (("name", c_char_p), ("value", c_char_p), ("source", c_int))


Diff = ctypes.CFUNCTYPE(c_int, c_uint64, c_size_t, c_int, Pointer)

_RADOS: dict[str, list[Any]] = {
    "rados_create": [POINTER(Pointer), c_char_p],
    "rados_conf_read_file": [Pointer, c_char_p],
    "rados_conf_set": [Pointer, c_char_p, c_char_p],
    "rados_connect": [Pointer],
    "rados_shutdown": [Pointer],
    "rados_wait_for_latest_osdmap": [Pointer],
    "rados_ioctx_create": [Pointer, c_char_p, POINTER(Pointer)],
    "rados_ioctx_destroy": [Pointer],
    "rados_ioctx_set_namespace": [Pointer, c_char_p],
    "rados_set_osdmap_full_try": [Pointer],
}
_RBD: dict[str, list[Any]] = {
    "rbd_open": [Pointer, c_char_p, POINTER(Pointer), c_char_p],
    "rbd_close": [Pointer],
    "rbd_get_size": [Pointer, POINTER(c_uint64)],
    "rbd_set_image_notification": [Pointer, c_int, c_int],
    "rbd_lock_acquire": [Pointer, c_int],
    "rbd_lock_get_owners": [Pointer, POINTER(c_int), POINTER(c_char_p), POINTER(c_size_t)],
    "rbd_lock_get_owners_cleanup": [POINTER(c_char_p), c_size_t],
    "rbd_lock_break": [Pointer, c_int, c_char_p],
    "rbd_watchers_list": [Pointer, POINTER(Watcher), POINTER(c_size_t)],
    "rbd_watchers_list_cleanup": [POINTER(Watcher), c_size_t],
    "rbd_config_image_list": [Pointer, POINTER(Option), POINTER(c_int)],
    "rbd_config_image_list_cleanup": [POINTER(Option), c_int],
    "rbd_diff_iterate2": [
        Pointer, c_char_p, c_uint64, c_uint64, c_uint8, c_uint8, Diff, Pointer,
    ],
    "rbd_aio_read": [Pointer, c_uint64, c_size_t, Pointer, Pointer],
    "rbd_aio_write": [Pointer, c_uint64, c_size_t, Pointer, Pointer],
    "rbd_aio_flush": [Pointer, Pointer],
    "rbd_aio_discard": [Pointer, c_uint64, c_uint64, Pointer],
    "rbd_aio_write_zeroes": [Pointer, c_uint64, c_size_t, Pointer, c_int, c_int],
}  # fmt: skip
_QUICK: dict[str, list[Any]] = {
    "rbd_aio_create_completion": [Pointer, Pointer, POINTER(Pointer)],
    "rbd_aio_get_arg": [Pointer],
    "rbd_aio_get_return_value": [Pointer],
    "rbd_aio_release": [Pointer],
    "rbd_poll_io_events": [Pointer, POINTER(Pointer), c_int],
}
"""Those that wait for nothing: they keep the interpreter."""

_RETURNS: dict[str, Any] = {
    "rados_ioctx_destroy": None,
    "rados_ioctx_set_namespace": None,
    "rados_set_osdmap_full_try": None,
    "rados_shutdown": None,
    "rbd_lock_get_owners_cleanup": None,
    "rbd_watchers_list_cleanup": None,
    "rbd_config_image_list_cleanup": None,
    "rbd_aio_get_arg": Pointer,
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


try:
    C = _functions()
except (OSError, AttributeError) as error:
    raise NotSupportedError(f"these librados and librbd have no events: {error}") from error
"""By their names. Only those of librbd that wait for nothing keep the interpreter."""


def checked(name: str, *arguments: Any) -> int:
    """Call a function that returns a negative error number. Raises `rbd.OSError`, as Ceph's Python
    module does."""
    status: int = C[name](*arguments)
    if status < 0:
        raise failure(name, status)
    return status


def failure(name: str, status: int) -> Exception:
    """Return the error for what a function has returned, a negative number: an `rbd.OSError`."""
    error: Exception = rbd.OSError(f"{name}: {os.strerror(-status)}", -status)
    return error
