"""One conversation with a VM's QEMU over its QMP socket: connect, commands, events, within limits.

Everything that can go wrong becomes a BockdError that a tenant may read: `NotRunningError` when
nobody is at the other end, UnavailableError when who is there does not answer, and `RefusedError`
for what QEMU declined.

QEMU talks to one client at a time on a QMP socket. The next one connects, and then waits for a
greeting; therefore a conversation is short, and nobody holds the socket between two of them.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from qemu.qmp import ConnectError, ExecuteError, QMPClient, QMPError
from qemu.qmp.error import ProtocolError
from qemu.qmp.events import EventListener
from qemu.qmp.message import DeserializationError

from bockd.errors import ConflictError, UnavailableError

CONNECT_SECONDS = 10.0
"""For the greeting. An idle QEMU takes milliseconds, one that brings up its machine a second."""

TURN_SECONDS = 0.05
"""Between two tries when other clients wait for QEMU already."""

COMMAND_SECONDS = 30.0
"""For one reply. The slowest command, blockdev-add, connects to the daemon and asks the volume's
size; that may have to wait until the volume is open."""

GOODBYE_SECONDS = 2.0
"""For closing the connection, which needs nothing of QEMU."""

MAX_LINE_BYTES = 4 << 20
"""A reply is one line. The longest, all block nodes of a VM, takes about 1 KiB for each disk."""

# The package logs each error that it raises; what we raise of it is reported once, by who asked.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)


class NotRunningError(UnavailableError):
    """No QEMU is at the socket, or it ended: there is nothing that could use a volume."""


class RefusedError(ConflictError):
    """QEMU, or the guest, declined; the message has its words."""


class Monitor:
    """A conversation that has begun. Commands go one after the other."""

    def __init__(self, client: QMPClient) -> None:
        self._client = client

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        """Execute a QMP command and return its result.

        Raises RefusedError with QEMU's reason, NotRunningError when QEMU ends meanwhile,
        UnavailableError when no reply comes.
        """
        try:
            async with asyncio.timeout(COMMAND_SECONDS):
                return await self._client.execute(command, arguments)
        except ExecuteError as error:
            raise RefusedError(f"QEMU: {error}") from error
        except TimeoutError as error:
            raise UnavailableError(
                f"QEMU did not answer {command} within {COMMAND_SECONDS:g} s: it hangs, or waits "
                "for a disk"
            ) from error
        except ProtocolError as error:
            raise _interrupted(command, error) from error
        except QMPError as error:
            raise _interrupted(command, await _parting(self._client) or error) from error

    def listen(self, *events: str) -> EventListener:
        """Return a listener for these events, as they arrive from now on."""
        listener = EventListener(events)
        self._client.register_listener(listener)
        return listener


@asynccontextmanager
async def conversation(path: str) -> AsyncIterator[Monitor]:
    """Open a conversation with the QEMU that listens at a Unix socket's path, until the context
    ends.

    Raises NotRunningError, UnavailableError.
    """
    client = QMPClient(readbuflen=MAX_LINE_BYTES)
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await client.connect(await _connected(path))
    except TimeoutError as error:
        raise UnavailableError(
            f"QEMU sent no greeting within {CONNECT_SECONDS:g} s: it hangs, or another program "
            "uses its QMP socket; start the VM with a socket for bockd alone"
        ) from error
    except ConnectError as error:
        raise _not_connected(error.exc) from error
    except OSError as error:
        raise _not_connected(error) from error
    except AssertionError as error:
        # qemu.qmp asserts at the end of `connect` that the conversation lasts. It does not when
        # QEMU has ended just after its greeting.
        raise _not_connected(await _parting(client) or EOFError()) from error
    try:
        yield Monitor(client)
    finally:
        await _parting(client)


async def _connected(path: str) -> socket.socket:
    """A socket that is connected to the one at `path`, when it is our turn: the kernel refuses a
    client for whom QEMU's backlog (of one) has no room, and asyncio takes that for a connection."""
    client = socket.socket(socket.AF_UNIX)
    try:
        client.setblocking(False)
        while True:
            try:
                client.connect(path)
            except BlockingIOError:
                await asyncio.sleep(TURN_SECONDS)
            else:
                return client
    except BaseException:
        client.close()
        raise


async def _parting(client: QMPClient) -> Exception | None:
    """Hang up; returns what had ended the connection before, if anything had."""
    try:
        async with asyncio.timeout(GOODBYE_SECONDS):
            await client.disconnect()
    except (QMPError, OSError, EOFError, ValueError) as error:
        return error
    return None


def _interrupted(command: str, cause: Exception) -> Exception:
    """Why there was no reply, in our terms. Only a connection that was closed tells that the VM
    has gone."""
    match cause:
        case EOFError() | ConnectionError():
            return NotRunningError(f"the VM ended at {command}")
        case _:
            return UnavailableError(f"QEMU's answer to {command} is not QMP: {_first_line(cause)}")


def _not_connected(cause: BaseException) -> Exception:
    """Why no conversation came about, in our terms."""
    match cause:
        case FileNotFoundError() | ConnectionRefusedError():
            return NotRunningError("no QEMU listens at the QMP socket: the VM is not running")
        case PermissionError():
            return UnavailableError(
                "bockd may not use the VM's QMP socket: give the socket, and the way to it, to the "
                "user that bockd runs as"
            )
        case EOFError() | ConnectionError():
            return NotRunningError("QEMU hung up at once: the VM has just ended")
        case _:
            return UnavailableError(_misspoken(cause))


def _misspoken(cause: BaseException) -> str:
    """Say what is wrong with a first line that is no greeting."""
    invalid = cause.__cause__
    received = invalid.raw.strip() if isinstance(invalid, DeserializationError) else b""
    if received == b"{":
        return (
            "the VM's QMP socket is set to indent its JSON over several lines, which bockd cannot "
            "read: start the VM with -qmp instead of -qmp-pretty (or without pretty=on)"
        )
    if received.startswith(b"QEMU "):
        return (
            "the VM's QMP socket is QEMU's monitor for people, which does not speak QMP: start the "
            "VM with -qmp instead of -monitor (or with mode=control)"
        )
    return f"what listens at the VM's QMP socket does not speak QMP: {_first_line(cause)}"


def _first_line(error: BaseException) -> str:
    """The package quotes what it received in the lines below."""
    return str(error).partition("\n")[0]
