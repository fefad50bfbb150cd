"""One NBD connection of a storm's client, over a Unix socket, with simple replies.

proto.md, "Newstyle negotiation" and "Transmission".
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bockd.nbd.protocol import constants as nbd

_GREETING: Final = struct.Struct(">QQH")
_OPTION: Final = struct.Struct(">QII")
_OPTION_REPLY: Final = struct.Struct(">QIII")
_REQUEST: Final = struct.Struct(">IHHQQI")
_REPLY: Final = struct.Struct(">IIQ")

LOOK_SECONDS = 0.1
"""Between looks at whether patience is at its end."""


class GoneError(Exception):
    """The connection has ended, or whoever is behind it keeps silent for too long."""


class Session:
    """A connection to an export. Everything raises GoneError."""

    def __init__(self, path: Path, export: str, patient: Callable[[], bool]) -> None:
        """Connect. `patient` says whether to wait longer for what is waited for."""
        self._patient = patient
        self._lengths: dict[int, int] = {}
        """Of the data that comes with the replies to reads, by their cookies."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(LOOK_SECONDS)
        try:
            try:
                self._socket.connect(str(path))
            except OSError as error:
                raise GoneError(f"connecting: {error}") from error
            self._negotiate(export.encode())
        except BaseException:
            self._socket.close()
            raise

    def _negotiate(self, name: bytes) -> None:
        _, _, flags = _GREETING.unpack(self._receive(_GREETING.size))
        assert flags & nbd.FLAG_FIXED_NEWSTYLE
        self._send(struct.pack(">I", nbd.FLAG_FIXED_NEWSTYLE | nbd.FLAG_NO_ZEROES))
        asked = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        self._send(_OPTION.pack(nbd.OPTION_MAGIC, nbd.OPT_GO, len(asked)) + asked)
        while True:
            _, _, kind, length = _OPTION_REPLY.unpack(self._receive(_OPTION_REPLY.size))
            said = self._receive(length)
            if kind == nbd.REP_ACK:
                return
            if kind & 1 << 31:
                raise GoneError(f"refused: {said.decode()}")

    def close(self) -> None:
        self._socket.close()

    def ask(self, cookie: int, command: int, offset: int, length: int, data: bytes = b"") -> None:
        """Send a request."""
        if command == nbd.CMD_READ:
            self._lengths[cookie] = length
        self._send(_REQUEST.pack(nbd.REQUEST_MAGIC, 0, command, cookie, offset, length) + data)

    def answer(self) -> tuple[int, bytes]:
        """Wait for the next reply, and return its cookie and data. One that says that a request has
        failed ends the connection: nothing is to fail in a storm, but a gateway may be ending."""
        magic, error, cookie = _REPLY.unpack(self._receive(_REPLY.size))
        assert magic == nbd.SIMPLE_REPLY_MAGIC
        length = self._lengths.pop(cookie, 0)
        if error:
            raise GoneError(f"a request has failed with error {error}")
        return cookie, self._receive(length)

    def _send(self, content: bytes) -> None:
        left = memoryview(content)
        while left:
            try:
                left = left[self._socket.send(left) :]
            except TimeoutError:
                self._wait_on("sending")
            except OSError as error:
                raise GoneError(f"sending: {error}") from error

    def _receive(self, length: int) -> bytes:
        content = bytearray()
        while len(content) < length:
            try:
                piece = self._socket.recv(length - len(content))
            except TimeoutError:
                self._wait_on("waiting")
                continue
            except OSError as error:
                raise GoneError(f"waiting: {error}") from error
            if not piece:
                raise GoneError("the connection was ended")
            content += piece
        return bytes(content)

    def _wait_on(self, doing: str) -> None:
        if not self._patient():
            raise GoneError(f"{doing}: nobody answers")
