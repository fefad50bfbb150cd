"""What is called for each request to an image: compiled, or by ctypes where that was not built.

A request takes five calls of librbd's, of which `_requests.c` needs one from the interpreter for
each request, and one for all results that have come. Both ways do the same. An image is the address
of an `rbd_image_t`, a request a number that librbd gives back with the result.
"""

from __future__ import annotations

import ctypes
import os
from array import array
from collections.abc import Mapping
from ctypes import byref, c_char
from typing import Any, Protocol, cast

from bockd.drivers.rbd.librbd import C, Pointer
from bockd.runtime.compiled import wanted

Buffer = bytes | bytearray | memoryview

AT_ONCE = 128
"""Results taken with one call: more than a connection has under way."""


class Requests(Protocol):
    """One way of doing it."""

    def read(self, image: int, number: int, offset: int, into: bytearray | memoryview, /) -> int:
        """Begin to read into a buffer, which the caller keeps until the result has come. Return a
        negative error number if it has not begun: there will be no result."""
        ...

    def write(self, image: int, number: int, offset: int, data: Buffer, /) -> int:
        """Begin to write from a buffer, as `read` does."""
        ...

    def results(self, image: int, into: array[int], /) -> int:
        """Take results that have come, at most `AT_ONCE`: numbers of requests, each followed by its
        status. `into` has room for so many. Return how many they are."""
        ...


class _ByCtypes:
    """By ctypes."""

    def read(self, image: int, number: int, offset: int, into: bytearray | memoryview, /) -> int:
        return begin("rbd_aio_read", image, number, offset, len(into), _address(into))

    def write(self, image: int, number: int, offset: int, data: Buffer, /) -> int:
        address = data if isinstance(data, bytes) else _address(data)
        return begin("rbd_aio_write", image, number, offset, len(data), address)

    def results(self, image: int, into: array[int], /) -> int:
        ended = (Pointer * AT_ONCE)()
        found: int = max(0, _poll_io_events(image, ended, AT_ONCE))  # or an error number
        for index, completion in enumerate(ended[:found]):
            into[2 * index] = _get_arg(completion)
            into[2 * index + 1] = _get_return_value(completion)
            _release(completion)
        return found


_create_completion = C["rbd_aio_create_completion"]
_poll_io_events = C["rbd_poll_io_events"]
_get_arg = C["rbd_aio_get_arg"]
_get_return_value = C["rbd_aio_get_return_value"]
_release = C["rbd_aio_release"]


def begin(name: str, image: int, number: int, *arguments: Any, more: tuple[int, ...] = ()) -> int:
    """Begin a request by a function of librbd's, with ctypes. `more` are the arguments behind the
    completion. Return a negative error number if it has not begun."""
    completion = Pointer()
    _create_completion(number, None, byref(completion))
    status: int = C[name](image, *arguments, completion, *more)
    if status < 0:
        _release(completion)
    return status


def _address(data: bytearray | memoryview) -> int:
    """Return where a buffer is. It stays there for as long as nobody resizes it."""
    return ctypes.addressof(c_char.from_buffer(data)) if data else 0


def load(environ: Mapping[str, str]) -> Requests:
    """Return the compiled way, or the other one where it was not built, or is not wanted."""
    if wanted(environ):
        try:
            from bockd.drivers.rbd import _requests
        except ImportError:
            pass
        else:
            return cast(Requests, _requests)
    return BY_CTYPES


BY_CTYPES: Requests = _ByCtypes()
requests = load(os.environ)
