"""Requests to an image, and how their results come from librbd's threads to the owner thread.

librbd answers in any order, in threads of its own. A `Request` is what it calls there, and what
the operation that made it awaits; all that happens in librbd's thread is that the result is noted.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

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


class Request(Completion[bytes | bytearray | None]):
    """One request on its way. What awaits it gets the data of a read.

    Raises OSError with librbd's error number.
    """

    def __init__(self, payload: bytes | None = None) -> None:
        super().__init__()
        self.payload = payload
        """What a write sends. librbd reads it until the request has ended, whoever still waits;
        newer releases keep no copy. librbd has this object until then, and it has the payload."""

    def __call__(self, completion: Finished, data: bytes | bytearray | None = None) -> None:
        """Note the result. librbd calls this in a thread of its own, once."""
        self.payload = None
        status = completion.get_return_value()
        if status < 0:
            self.fail(OSError(-status, os.strerror(-status)))
        else:
            self.finish(data)
