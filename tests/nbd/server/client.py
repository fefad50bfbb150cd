"""A client that sends what it is told, byte by byte, and reads replies as proto.md has them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import trio

from tests.nbd.protocol import wire


@dataclass(frozen=True)
class Chunk:
    """A structured or extended chunk."""

    cookie: int
    flags: int
    kind: int
    payload: bytes

    @property
    def error(self) -> int:
        assert self.kind & 0x8000
        value: int = struct.unpack_from(">I", self.payload)[0]
        return value


class Closed(Exception):  # noqa: N818 - an event of the test
    """The server has closed the connection."""


class Client:
    """One connection."""

    def __init__(self, stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]) -> None:
        self.stream = stream
        self._buffer = b""

    @classmethod
    async def connect(cls, path: Path) -> Client:
        stream = await trio.open_unix_socket(str(path))
        client = cls(stream)
        assert await client.read(18) == b"NBDMAGICIHAVEOPT\x00\x03"
        return client

    @classmethod
    async def go(
        cls, path: Path, name: str = "disk", *options: bytes, behind: bytes = b""
    ) -> Client:
        """Connect, send options, and enter transmission; `behind` goes out with the last option."""
        client = await cls.connect(path)
        await client.send(wire.FIXED_NEWSTYLE_NO_ZEROES)
        for option in options:
            await client.send(option)
            while (await client.option_reply()).kind != 1:
                pass
        await client.send(wire.go(name) + behind)
        reply = await client.option_reply()
        assert reply.kind == 3, reply
        assert (await client.option_reply()).kind == 1
        return client

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await trio.aclose_forcefully(self.stream)

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def read(self, length: int) -> bytes:
        """Exactly `length` bytes; raises Closed."""
        while len(self._buffer) < length:
            try:
                received = await self.stream.receive_some()
            except trio.BrokenResourceError:
                raise Closed from None
            if not received:
                raise Closed
            self._buffer += received
        data, self._buffer = self._buffer[:length], self._buffer[length:]
        return data

    async def closes(self) -> bytes:
        """Wait for the server to close; what it had still sent."""
        data = self._buffer
        self._buffer = b""
        try:
            async for received in self.stream:
                data += received
        except trio.BrokenResourceError:
            pass
        return data

    async def option_reply(self) -> wire.OptionReply:
        magic, option, kind, length = struct.unpack(">QIII", await self.read(20))
        assert magic == 0x0003E889045565A9
        return wire.OptionReply(option, kind, await self.read(length))

    async def simple(self) -> tuple[int, int]:
        """Cookie and error of a simple reply."""
        magic, error, cookie = struct.unpack(">IIQ", await self.read(16))
        assert magic == 0x67446698
        return cookie, error

    async def chunk(self) -> Chunk:
        magic, flags, kind, cookie, length = struct.unpack(">IHHQI", await self.read(20))
        assert magic == 0x668E33EF
        return Chunk(cookie, flags, kind, await self.read(length))

    async def extended_chunk(self, offset: int) -> Chunk:
        """An extended chunk of a request at `offset`."""
        header = struct.unpack(">IHHQQQ", await self.read(32))
        magic, flags, kind, cookie, echoed, length = header
        assert (magic, echoed) == (0x6E8A278C, offset)
        return Chunk(cookie, flags, kind, await self.read(length))

    async def write(self, offset: int, data: bytes, *, cookie: int = 1, flags: int = 0) -> int:
        await self.send(wire.write(cookie, offset, data, flags))
        answered, error = await self.simple()
        assert answered == cookie
        return error

    async def command(
        self, command: int, offset: int = 0, length: int = 0, *, cookie: int = 1, flags: int = 0
    ) -> int:
        """The error of a command that is answered without data."""
        await self.send(wire.request(command, cookie, offset, length, flags))
        answered, error = await self.simple()
        assert answered == cookie
        return error

    async def read_data(self, offset: int, length: int, *, cookie: int = 1) -> bytes:
        """A read that must succeed, with a simple reply."""
        await self.send(wire.request(0, cookie, offset, length))
        assert await self.simple() == (cookie, 0)
        return await self.read(length)
