"""An image in memory that answers when it is told to, in any order and from another thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from bockd.drivers.rbd.completions import OnComplete
from bockd.drivers.rbd.extents import OBJECT_BYTES


class Done:
    """librbd's completion of a request that has ended."""

    def __init__(self, status: int) -> None:
        self._status = status

    def get_return_value(self) -> int:
        return self._status


@dataclass
class Pending:
    """A request that the image has and has not answered."""

    name: str
    carry_out: Callable[[], bytes | None]
    oncomplete: OnComplete
    arguments: tuple[object, ...]

    def end(self, status: int = 0) -> None:
        """Carry it out and answer, or answer with a negative error number. In another thread."""
        is_read = self.name == "read"
        data = self.carry_out() if status >= 0 else None
        answer = (Done(status), data) if is_read else (Done(status),)
        thread = threading.Thread(target=self.oncomplete, args=answer)
        thread.start()
        thread.join()


class FakeImage:
    """What a device asks of `rbd.Image`, over memory."""

    def __init__(self, size: int) -> None:
        self.pending: list[Pending] = []
        self.names: list[str] = []
        """Of all requests, in the order in which they came."""
        self.at_once: int | None = None
        """What every request is answered with as soon as it comes, still in another thread; None:
        it is kept in `pending`."""
        self.refusal: Exception | None = None
        """What each call raises instead."""
        self.longest_read = size
        """What a read brings at most."""
        self.diffs = 0
        self.while_diffing: Callable[[], None] = lambda: None
        self.closed = False
        self._size = size
        self._content: dict[int, bytearray] = {}

    def put(self, offset: int, data: bytes) -> None:
        """Have data in the image."""
        position = 0
        while position < len(data):
            number, within = divmod(offset + position, OBJECT_BYTES)
            piece = data[position : position + OBJECT_BYTES - within]
            kept = self._content.setdefault(number, bytearray(OBJECT_BYTES))
            kept[within : within + len(piece)] = piece
            position += len(piece)

    def content(self, offset: int, length: int) -> bytes:
        """Return what the image holds."""
        found = bytearray()
        while len(found) < length:
            number, within = divmod(offset + len(found), OBJECT_BYTES)
            stop = min(OBJECT_BYTES, within + length - len(found))
            found += self._content.get(number, bytes(OBJECT_BYTES))[within:stop]
        return bytes(found)

    # -- rbd.Image -----------------------------------------------------------------------------

    def aio_read(self, offset: int, length: int, oncomplete: OnComplete, /) -> None:
        self._take(
            "read",
            lambda: self.content(offset, min(length, self.longest_read)),
            oncomplete,
            offset,
            length,
        )

    def aio_write(self, data: bytes, offset: int, oncomplete: OnComplete, /) -> None:
        assert type(data) is bytes
        self._take("write", lambda: self.put(offset, data), oncomplete, offset, len(data))

    def aio_flush(self, oncomplete: OnComplete, /) -> None:
        self._take("flush", lambda: None, oncomplete)

    def aio_discard(self, offset: int, length: int, oncomplete: OnComplete, /) -> None:
        self._take("discard", lambda: self._drop(offset, length), oncomplete, offset, length)

    def aio_write_zeroes(
        self, offset: int, length: int, oncomplete: OnComplete, flags: int, /
    ) -> None:
        def carry_out() -> None:
            if flags:
                self.put(offset, bytes(length))
            else:
                self._drop(offset, length)

        self._take("zeroes", carry_out, oncomplete, offset, length, flags)

    def diff_iterate(
        self,
        offset: int,
        length: int,
        from_snapshot: str | None,
        iterate_cb: Callable[[int, int, bool], None],
        include_parent: bool,
        whole_object: bool,
    ) -> None:
        assert (offset, length, from_snapshot) == (0, self._size, None)
        assert include_parent
        assert whole_object
        self.diffs += 1
        if self.refusal is not None:
            raise self.refusal
        found = sorted(self._content)
        self.while_diffing()
        for number in found:
            iterate_cb(number * OBJECT_BYTES, OBJECT_BYTES, True)

    def close(self) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.closed = True

    def _take(
        self,
        name: str,
        carry_out: Callable[[], bytes | None],
        oncomplete: OnComplete,
        *arguments: object,
    ) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.names.append(name)
        one = Pending(name, carry_out, oncomplete, arguments)
        if self.at_once is None:
            self.pending.append(one)
        else:
            one.end(self.at_once)

    def _drop(self, offset: int, length: int) -> None:
        end = offset + length
        for number in list(self._content):
            start, stop = number * OBJECT_BYTES, (number + 1) * OBJECT_BYTES
            if offset <= start and stop <= end:
                del self._content[number]
            elif offset < stop and start < end:
                first, last = max(offset, start), min(end, stop)
                self._content[number][first - start : last - start] = bytes(last - first)


class InPlaceImage(FakeImage):
    """One that works on the buffers of who asks. It answers reads with a number of bytes."""

    def aio_read_into(self, into: memoryview, offset: int, oncomplete: OnComplete, /) -> None:
        def carry_out() -> None:
            into[:] = self.content(offset, len(into))

        self._take("read into", carry_out, oncomplete, offset, len(into))

    def aio_write_from(self, data: memoryview, offset: int, oncomplete: OnComplete, /) -> None:
        self.aio_write(bytes(data), offset, oncomplete)
