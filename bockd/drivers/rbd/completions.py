"""Requests to an image, and how their results come from librbd to the owner thread.

librbd answers in any order. A `Request` is what is called with a result, and what the operation
that made it awaits. Ceph's Python module calls it in a thread of librbd's, where all that happens
is that the result is noted; an `EventImage` in the thread that takes its results.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from bockd.runtime.steps import Completion


class Finished(Protocol):
    """librbd's completion, once a request has ended."""

    def get_return_value(self) -> int:
        """Return a number of bytes, or 0, or a negative error number."""
        ...


OnComplete = Callable[..., None]
"""Called with the completion, and by `aio_read` with the data, which is None after an error."""


class Image(Protocol):
    """What a device asks of an open image: an `rbd.Image`, or an `EventImage`."""

    def aio_read(self, offset: int, length: int, oncomplete: OnComplete, /) -> object: ...

    def aio_write(self, data: bytes, offset: int, oncomplete: OnComplete, /) -> object: ...

    def aio_flush(self, oncomplete: OnComplete, /) -> object: ...

    def aio_discard(self, offset: int, length: int, oncomplete: OnComplete, /) -> object: ...

    def aio_write_zeroes(
        self, offset: int, length: int, oncomplete: OnComplete, flags: int, /
    ) -> object: ...

    def diff_iterate(
        self,
        offset: int,
        length: int,
        from_snapshot: str | None,
        iterate_cb: Callable[[int, int, bool], None],
        include_parent: bool,
        whole_object: bool,
    ) -> None: ...

    def close(self) -> None: ...


@runtime_checkable
class InPlace(Protocol):
    """An image that works on the buffers of who asks: they are neither copied nor freed, and must
    not change, until the result has come."""

    def aio_read_into(self, into: memoryview, offset: int, oncomplete: OnComplete, /) -> object:
        """Read. The result is the number of bytes."""
        ...

    def aio_write_from(self, data: memoryview, offset: int, oncomplete: OnComplete, /) -> object:
        """Write."""
        ...


class Request(Completion[bytes | bytearray | None]):
    """One request on its way. What awaits it gets the data of a read, unless it is `InPlace`.

    Raises OSError with librbd's error number.
    """

    def __init__(self, payload: bytes | None = None) -> None:
        super().__init__()
        self.status = 0
        """What librbd has returned: a number of bytes, or 0. To be asked when it has ended."""
        self.payload = payload
        """What a write sends. librbd reads it until the request has ended, whoever still waits;
        newer releases keep no copy. librbd has this object until then, and it has the payload."""

    def __call__(self, completion: Finished, data: bytes | bytearray | None = None) -> None:
        """Note the result. librbd calls this in a thread of its own, once."""
        self.end(completion.get_return_value(), data)

    def end(self, status: int, data: bytes | bytearray | None = None) -> None:
        """Note the result: what librbd has returned. Once."""
        self.payload = None
        if status < 0:
            self.fail(OSError(-status, os.strerror(-status)))
        else:
            self.status = status
            self.finish(data)
