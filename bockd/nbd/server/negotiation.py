"""The handshake over a socket: feeds the state machine and answers its questions from a table."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from bockd.errors import BockdError
from bockd.model import KIB
from bockd.nbd.protocol.handshake import (
    GREETING,
    Abort,
    ChooseExport,
    DescribeExport,
    Handshake,
    ListExports,
    Negotiated,
    Reply,
    StartTls,
)
from bockd.nbd.server.channel import Channel
from bockd.nbd.server.exports import ExportTable, OpenExport
from bockd.nbd.server.tls import FrontendTls, TlsChannel

_RECEIVE_BYTES = 64 * KIB
"""Also bounds how many bytes of requests may follow the last option."""


@dataclass(frozen=True, slots=True)
class Entrance:
    """A client that may enter transmission: `reply` is to be sent when it may."""

    channel: Channel
    """The one that it came by, or TLS over it."""
    export: OpenExport
    reply: bytes
    negotiated: Negotiated
    leftover: bytes


async def negotiate(channel: Channel, table: ExportTable, tls: FrontendTls) -> Entrance | None:
    """Run the handshake until the client has chosen an export. None when it left before.

    Raises ProtocolError when it broke the rules; the caller bounds the time that it takes.
    """
    await channel.send(GREETING)
    handshake = Handshake(tls.mode)
    memory = memoryview(bytearray(_RECEIVE_BYTES))
    while True:
        # Nothing else here need wait while a client goes on sending options: without this it would
        # keep the loop to itself, and its deadline would never come.
        await trio.lowlevel.checkpoint()
        match handshake.next_event():
            case None:
                received = await channel.receive(memory)
                if not received:
                    return None
                handshake.receive(memory[:received])
            case Reply(data):
                await channel.send(data)
            case Abort(data):
                await channel.send(data)
                channel.close()
                return None
            case StartTls(data):
                await channel.send(data)
                channel = await TlsChannel.accept(channel, tls.context())
                handshake.secured()
            case ListExports() as question:
                await channel.send(await _list(handshake, table, question))
            case DescribeExport() as question:
                await channel.send(await _describe(handshake, table, question))
            case ChooseExport() as question:
                if entrance := await _open(channel, handshake, table, question):
                    return entrance


async def _list(handshake: Handshake, table: ExportTable, question: ListExports) -> bytes:
    try:
        exports = await table.list_exports()
    except BockdError as error:
        return handshake.refused(question, error)
    return handshake.listed(exports)


async def _describe(handshake: Handshake, table: ExportTable, question: DescribeExport) -> bytes:
    try:
        info = await table.describe(question.name)
    except BockdError as error:
        return handshake.refused(question, error)
    return handshake.described(question, info)


async def _open(
    channel: Channel, handshake: Handshake, table: ExportTable, question: ChooseExport
) -> Entrance | None:
    try:
        export = await table.open(question.name)
    except BockdError as error:
        await channel.send(handshake.refused(question, error))
        return None
    reply, negotiated = handshake.accepted(question, export.info)
    return Entrance(channel, export, reply, negotiated, handshake.leftover())
