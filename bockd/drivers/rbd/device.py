"""A volume or snapshot in a Ceph cluster, open: the volume contract over an image of RBD.

A write is answered when all replicas have it, so it survives the death of this process and of this
machine (D1), and a loss of power, too: OSDs sync before they answer (D2). Nothing is answered at
once (the `try_*` forms refuse), and no request has a time limit: while the cluster stalls, requests
wait, as on a disk. One that was given up could still be carried out, after a newer one.

A volume that another gateway takes is *lost* here: the first request that learns of it fails with
VolumeTakenError, and so does all that is under way or begins afterwards, whatever came of it in the
cluster. The client must not get an answer from here any more; it connects to the other gateway, and
sends again what was not answered.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from bockd.drivers.rbd.binding import rbd
from bockd.drivers.rbd.completions import Image, InPlace, Request
from bockd.drivers.rbd.errors import CEPH_ERRORS, from_ceph_error, from_volume_error
from bockd.drivers.rbd.extents import Objects, existing_objects
from bockd.errors import BockdError, DeviceError, VolumeTakenError
from bockd.model import BLOCK_SIZE, Extent
from bockd.runtime.steps import Signal, blocking_apart
from bockd.runtime.waiting import Mutex

_ALLOCATE = rbd.RBD_WRITE_ZEROES_FLAG_THICK_PROVISION


class RbdDevice:
    """A `BlockDevice` over an image whose lock is ours, or over a snapshot of one."""

    def __init__(self, image: Image, name: str, size_bytes: int, *, read_only: bool) -> None:
        """`name` is for errors, as in "volume 7"."""
        self.lost = Signal()
        """Fires when another gateway has taken the volume: its connections are to be ended."""
        self._image = image
        self._in_place = image if isinstance(image, InPlace) else None
        self._name = name
        self._size_bytes = size_bytes
        self._read_only = read_only
        self._objects = Objects(size_bytes)
        self._asking = Mutex()

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def read_only(self) -> bool:
        return self._read_only

    def grow(self, size_bytes: int) -> None:
        """Follow the image, which has become larger; what is new reads as zeros."""
        assert size_bytes >= self._size_bytes
        self._objects.grow(size_bytes)
        self._size_bytes = size_bytes

    async def close(self) -> None:
        """Close the image, which waits for what is under way, and releases its lock. It may hang
        for as long as the cluster does. Raises BockdError: all that was answered is there even so.
        """
        try:
            await blocking_apart("closing images", self._image.close)
        except CEPH_ERRORS as error:
            raise from_ceph_error(error, f"{self._name}: closing") from error

    # The immediate forms.

    def try_read(self, offset: int, into: memoryview) -> bool:
        return False

    def try_write(self, offset: int, data: memoryview) -> bool:
        return False

    def try_trim(self, offset: int, length: int) -> bool:
        return False

    def commit(self) -> None:
        """Do nothing: nothing was done at once. Raises VolumeTakenError."""
        self._refuse_lost("writing")

    def try_extents(self, offset: int, length: int, limit: int) -> list[Extent] | None:
        self._refuse_lost("extents")
        if not self._objects.known:
            return None
        return self._objects.extents(offset, length, limit)

    # The forms that wait.

    async def read(self, offset: int, into: memoryview) -> None:
        request = Request()
        if self._in_place is not None:
            # As in `_send`, without a coroutine for it: this is where most requests go.
            self._refuse_lost("reading")
            try:
                self._in_place.aio_read_into(into, offset, request)
                await request
            except (OSError, *CEPH_ERRORS) as error:
                raise self._failure(error, "reading") from error
            self._refuse_lost("reading")
            sent = request.status
        else:
            data = await self._send("reading", request, self._image.aio_read, offset, len(into))
            assert data is not None
            sent = len(data)
            if sent == len(into):
                into[:] = data
        if sent != len(into):
            raise DeviceError(
                f"{self._name}: reading {len(into)} bytes at {offset}: {sent} were sent"
            )

    async def write(self, offset: int, data: memoryview) -> None:
        assert not self._read_only
        with self._objects.writing(offset, len(data)):
            if self._in_place is not None:
                request = Request()
                await self._send("writing", request, self._in_place.aio_write_from, data, offset)
            else:
                payload = bytes(data)
                request = Request(payload)
                await self._send("writing", request, self._image.aio_write, payload, offset)

    async def zero(self, offset: int, length: int, *, allocate: bool) -> None:
        assert not self._read_only
        # What is not allocated is no data for that, even where parts of blocks are written.
        objects: Callable[[int, int], AbstractContextManager[None]]
        objects = self._objects.writing if allocate else self._objects.trimming
        with objects(offset, length):
            await self._request(
                "zeroing",
                lambda request: self._image.aio_write_zeroes(
                    offset, length, request, _ALLOCATE if allocate else 0
                ),
            )

    async def trim(self, offset: int, length: int) -> None:
        assert not self._read_only
        start = -(-offset // BLOCK_SIZE) * BLOCK_SIZE
        whole = (offset + length) // BLOCK_SIZE * BLOCK_SIZE - start
        if whole <= 0:
            self._refuse_lost("trimming")
            return
        with self._objects.trimming(start, whole):
            await self._request("trimming", self._image.aio_discard, start, whole)

    async def flush(self) -> None:
        await self._request("flushing", self._image.aio_flush)

    async def extents(self, offset: int, length: int, limit: int) -> list[Extent]:
        async with self._asking:
            if not self._objects.known:
                await self._learn()
        self._refuse_lost("extents")
        return self._objects.extents(offset, length, limit)

    async def cache(self, offset: int, length: int) -> None:
        """Do nothing: there is no cache to read ahead into."""

    # What they share.

    async def _request(self, doing: str, send: Callable[..., object], *arguments: object) -> None:
        await self._send(doing, Request(), send, *arguments)

    async def _send(
        self, doing: str, request: Request, send: Callable[..., object], *arguments: object
    ) -> bytes | bytearray | None:
        """Call `send` with the arguments and the request behind them, and wait for its result."""
        self._refuse_lost(doing)
        try:
            send(*arguments, request)
            data = await request
        except (OSError, *CEPH_ERRORS) as error:
            raise self._failure(error, doing) from error
        self._refuse_lost(doing)
        return data

    async def _learn(self) -> None:
        self._refuse_lost("extents")
        try:
            existing = await blocking_apart(
                "extents", existing_objects, self._image, self._size_bytes
            )
        except CEPH_ERRORS as error:
            raise self._failure(error, "extents") from error
        self._objects.learn(existing)

    def _refuse_lost(self, doing: str) -> None:
        if self.lost.fired:
            raise self._taken(doing)

    def _taken(self, doing: str) -> VolumeTakenError:
        return VolumeTakenError(f"{self._name}: {doing}: another gateway has taken the volume")

    def _failure(self, error: Exception, doing: str) -> BockdError:
        where = f"{self._name}: {doing}"
        if self._read_only:
            return from_ceph_error(error, where)
        if self.lost.fired:
            return self._taken(doing)
        found = from_volume_error(error, where)
        if isinstance(found, VolumeTakenError):
            self.lost.fire()
        return found
