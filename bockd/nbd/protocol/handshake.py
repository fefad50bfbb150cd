"""The handshake as a state machine without I/O: bytes in, events and replies out.

    greeting --client flags--> options --GO or EXPORT_NAME accepted--> negotiated

The caller sends `GREETING`, feeds what it receives to `receive()` and takes events from
`next_event()` until that returns None (more bytes are needed). Of the events, `Reply` is to be
sent, `Abort` is to be sent before closing, `StartTls` is to be sent before TLS begins, after which
`secured` has to be called, and the others are questions about exports: the caller answers each,
before it asks for the next event, with one of `listed`, `described`, `accepted` and `refused`,
which give the bytes to send. `ProtocolError` means close.

What was negotiated before TLS is forgotten, and what was received before it and not understood yet
must not exist: somebody on the way may have said it.

proto.md, "Fixed newstyle negotiation", "Option types" and "TLS support".
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from bockd.errors import BockdError, InvalidRequestError, NotFoundError, UnavailableError
from bockd.model import KIB, MIB, TlsMode
from bockd.nbd.protocol import constants as nbd
from bockd.nbd.protocol import limits, options
from bockd.nbd.protocol.errors import ProtocolError
from bockd.nbd.protocol.options import ExportInfo

MAX_OPTION_BYTES: Final = 64 * KIB
"""Option data kept in memory: a 4096-byte name and a full list of 64 queries of usual length."""

MAX_SKIPPED_OPTION_BYTES: Final = 1 * MIB
"""Longer data is skipped and answered with REP_ERR_TOO_BIG up to here; beyond, we close."""

GREETING: Final = struct.pack(
    ">QQH", nbd.INIT_MAGIC, nbd.OPTION_MAGIC, nbd.FLAG_FIXED_NEWSTYLE | nbd.FLAG_NO_ZEROES
)
"""What the server says first."""

_OPTION: Final = struct.Struct(">QII")
_CLIENT_FLAGS: Final = struct.Struct(">I")
_KNOWN_CLIENT_FLAGS: Final = nbd.FLAG_FIXED_NEWSTYLE | nbd.FLAG_NO_ZEROES
_BEFORE_TLS: Final = frozenset({nbd.OPT_STARTTLS, nbd.OPT_ABORT})
"""What is answered before TLS when TLS is required."""
_WITHOUT_DATA: Final = frozenset(
    {nbd.OPT_LIST, nbd.OPT_STARTTLS, nbd.OPT_STRUCTURED_REPLY, nbd.OPT_EXTENDED_HEADERS}
)


@dataclass(frozen=True, slots=True)
class Reply:
    """Bytes to send; the handshake goes on."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Abort:
    """The client gives up: send the bytes, then close."""

    data: bytes


@dataclass(frozen=True, slots=True)
class StartTls:
    """Send the bytes, then do the TLS handshake, then call `secured`."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ListExports:
    """Answer with `listed` or `refused`."""

    option = nbd.OPT_LIST


@dataclass(frozen=True, slots=True)
class DescribeExport:
    """Does the export exist, and what is it like? Answer with `described` or `refused`."""

    option: int
    name: str
    asked: frozenset[int] = frozenset()
    queries: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChooseExport:
    """The client enters transmission. Answer with `accepted` or `refused`."""

    option: int
    name: str
    asked: frozenset[int] = frozenset()


Event = Reply | Abort | StartTls | ListExports | DescribeExport | ChooseExport


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What holds in the transmission phase."""

    structured: bool
    extended: bool
    allocation: bool
    """base:allocation was selected for this export: BLOCK_STATUS may be asked."""


class Handshake:
    """One connection's handshake; see the module's docstring."""

    def __init__(self, tls: TlsMode = TlsMode.OFF) -> None:
        self._tls = tls
        self._secured = False
        self._buffer = bytearray()
        self._client_flags: int | None = None
        self._skip_bytes = 0
        self._after_skip: Reply | None = None
        self._structured = False
        self._extended = False
        self._allocation_of: str | None = None

    def receive(self, data: bytes | memoryview) -> None:
        """Add received bytes."""
        self._buffer += data

    def leftover(self) -> bytes:
        """Return what arrived after the option that ended the handshake: the first requests."""
        return bytes(self._buffer)

    def next_event(self) -> Event | None:
        """Return the next thing to do, or None if more bytes are needed. Raises ProtocolError."""
        if self._client_flags is None and not self._take_client_flags():
            return None
        if self._after_skip is not None:
            return self._finish_skip()
        if len(self._buffer) < _OPTION.size:
            return None
        magic, option, length = _OPTION.unpack_from(self._buffer)
        if magic != nbd.OPTION_MAGIC:
            raise ProtocolError(f"an option began with magic {magic:#x}")
        if length > MAX_OPTION_BYTES:
            return self._begin_skip(option, length)
        end = _OPTION.size + length
        if len(self._buffer) < end:
            return None
        data = bytes(self._buffer[_OPTION.size : end])
        del self._buffer[:end]
        return self._option(option, data)

    def secured(self) -> None:
        """Continue the handshake after TLS has begun: what is received from now on comes through
        TLS. What was negotiated before is forgotten."""
        assert not self._buffer
        self._secured = True
        self._structured = self._extended = False
        self._allocation_of = None

    def _take_client_flags(self) -> bool:
        if len(self._buffer) < _CLIENT_FLAGS.size:
            return False
        (flags,) = _CLIENT_FLAGS.unpack_from(self._buffer)
        if flags & ~_KNOWN_CLIENT_FLAGS:
            raise ProtocolError(f"unknown client flags {flags:#x}")
        del self._buffer[: _CLIENT_FLAGS.size]
        self._client_flags = flags
        return True

    def _begin_skip(self, option: int, length: int) -> Event | None:
        if option == nbd.OPT_EXPORT_NAME or length > MAX_SKIPPED_OPTION_BYTES:
            raise ProtocolError(f"option {option} with {length} bytes of data")
        del self._buffer[: _OPTION.size]
        self._skip_bytes = length
        message = f"option data of {length} bytes; at most {MAX_OPTION_BYTES} are taken"
        self._after_skip = (
            _require_tls(option)
            if self._needs_tls(option)
            else _refuse(option, nbd.REP_ERR_TOO_BIG, message)
        )
        return self._finish_skip()

    def _finish_skip(self) -> Event | None:
        skipped = min(self._skip_bytes, len(self._buffer))
        del self._buffer[:skipped]
        self._skip_bytes -= skipped
        if self._skip_bytes:
            return None
        event, self._after_skip = self._after_skip, None
        return event

    def _needs_tls(self, option: int) -> bool:
        """Whether TLS has to come first."""
        required = self._tls is TlsMode.REQUIRE and not self._secured
        return required and option not in _BEFORE_TLS

    def _option(self, option: int, data: bytes) -> Event:
        if self._needs_tls(option):
            return _require_tls(option)
        if data and option in _WITHOUT_DATA:
            return _refuse(option, nbd.REP_ERR_INVALID, "this option takes no data")
        try:
            match option:
                case nbd.OPT_EXPORT_NAME:
                    return self._export_name(data)
                case nbd.OPT_ABORT:
                    return Abort(options.reply(option, nbd.REP_ACK))
                case nbd.OPT_LIST:
                    return ListExports()
                case nbd.OPT_STARTTLS:
                    return self._starttls()
                case nbd.OPT_INFO:
                    return DescribeExport(option, *options.parse_info(data))
                case nbd.OPT_GO:
                    return ChooseExport(option, *options.parse_info(data))
                case nbd.OPT_STRUCTURED_REPLY:
                    return self._structured_reply()
                case nbd.OPT_EXTENDED_HEADERS:
                    return self._extended_headers()
                case nbd.OPT_LIST_META_CONTEXT | nbd.OPT_SET_META_CONTEXT:
                    return self._meta_context(option, data)
                case _:
                    return _refuse(option, nbd.REP_ERR_UNSUP, f"unknown option {option}")
        except ProtocolError:
            raise
        except InvalidRequestError as error:
            return _refuse(option, nbd.REP_ERR_INVALID, str(error))

    def _starttls(self) -> Event:
        option = nbd.OPT_STARTTLS
        if self._secured:
            return _refuse(option, nbd.REP_ERR_INVALID, "TLS is in use already")
        if self._tls is TlsMode.OFF:
            return _refuse(option, nbd.REP_ERR_POLICY, "there is no TLS on this listener")
        if self._buffer:
            # Taken for what comes through TLS they would be the word of anybody on the way.
            raise ProtocolError(f"{len(self._buffer)} bytes behind STARTTLS came without TLS")
        return StartTls(options.reply(option, nbd.REP_ACK))

    def _export_name(self, data: bytes) -> Event:
        if self._extended:
            raise ProtocolError("EXPORT_NAME after extended headers were negotiated")
        try:
            return ChooseExport(nbd.OPT_EXPORT_NAME, options.decode_string(data))
        except InvalidRequestError as error:
            # EXPORT_NAME has no error reply: "the server MUST terminate the session".
            raise ProtocolError(f"EXPORT_NAME: {error}") from None

    def _structured_reply(self) -> Event:
        option = nbd.OPT_STRUCTURED_REPLY
        if self._extended:
            return _refuse(option, nbd.REP_ERR_EXT_HEADER_REQD, "extended headers are in use")
        if self._structured:
            return _refuse(option, nbd.REP_ERR_INVALID, "structured replies are in use already")
        self._structured = True
        return Reply(options.reply(option, nbd.REP_ACK))

    def _extended_headers(self) -> Event:
        option = nbd.OPT_EXTENDED_HEADERS
        if self._extended:
            return _refuse(option, nbd.REP_ERR_INVALID, "extended headers are in use already")
        self._extended = True
        return Reply(options.reply(option, nbd.REP_ACK))

    def _meta_context(self, option: int, data: bytes) -> Event:
        if option == nbd.OPT_SET_META_CONTEXT:
            self._allocation_of = (
                None  # each SET replaces the one before, "including when it fails"
            )
        if not self._chunked:
            message = "negotiate structured replies or extended headers first"
            return _refuse(option, nbd.REP_ERR_INVALID, message)
        name, queries = options.parse_meta_context(data)
        if len(queries) > limits.MAX_META_QUERIES:
            message = f"{len(queries)} queries; at most {limits.MAX_META_QUERIES} are taken"
            return _refuse(option, nbd.REP_ERR_TOO_BIG, message)
        return DescribeExport(option, name, queries=tuple(queries))

    @property
    def _chunked(self) -> bool:
        return self._structured or self._extended

    def listed(self, exports: Iterable[ExportInfo]) -> bytes:
        """Return the answer to `ListExports`."""
        return options.list_replies(exports)

    def described(self, question: DescribeExport, info: ExportInfo) -> bytes:
        """Return the answer to `DescribeExport` when the export exists."""
        option = question.option
        if option == nbd.OPT_INFO:
            return options.info_replies(option, info, question.asked, chunked=self._chunked)
        allocation = _selects_allocation(option, question.queries)
        if option == nbd.OPT_SET_META_CONTEXT and allocation:
            self._allocation_of = question.name
        return options.meta_context_replies(option, allocation=allocation)

    def accepted(self, question: ChooseExport, info: ExportInfo) -> tuple[bytes, Negotiated]:
        """Return the answer to `ChooseExport` when the export is open, and what was negotiated. The
        handshake is over."""
        negotiated = Negotiated(
            structured=self._structured,
            extended=self._extended,
            allocation=self._allocation_of == question.name,
        )
        if question.option == nbd.OPT_EXPORT_NAME:
            zeroes = not (self._client_flags or 0) & nbd.FLAG_NO_ZEROES
            data = options.export_name_reply(info, chunked=self._chunked, zeroes=zeroes)
        else:
            data = options.info_replies(
                question.option, info, question.asked, chunked=self._chunked
            )
        return data, negotiated

    def refused(
        self, question: ListExports | DescribeExport | ChooseExport, error: BockdError
    ) -> bytes:
        """Return the answer when there is no such export, it cannot be opened, or nothing is known.

        Raises ProtocolError for EXPORT_NAME, which has no error reply.
        """
        if question.option == nbd.OPT_EXPORT_NAME:
            # This goes to the log, and neither the name nor what an error makes of it should.
            raise ProtocolError(f"EXPORT_NAME was refused ({error.code})")
        kind = nbd.REP_ERR_POLICY
        if isinstance(error, NotFoundError):
            kind = nbd.REP_ERR_UNKNOWN
        elif isinstance(error, UnavailableError):
            kind = nbd.REP_ERR_SHUTDOWN
        elif isinstance(error, InvalidRequestError):
            kind = nbd.REP_ERR_INVALID
        return options.error_reply(question.option, kind, str(error))


def _refuse(option: int, kind: int, message: str) -> Reply:
    return Reply(options.error_reply(option, kind, message))


def _require_tls(option: int) -> Reply:
    """The answer before TLS, where TLS is required. Raises ProtocolError for EXPORT_NAME, which
    has no error reply."""
    if option == nbd.OPT_EXPORT_NAME:
        raise ProtocolError("EXPORT_NAME without TLS, which is required")
    message = "this listener requires TLS: begin with STARTTLS"
    return _refuse(option, nbd.REP_ERR_TLS_REQD, message)


def _selects_allocation(option: int, queries: tuple[str, ...]) -> bool:
    """Do the queries match base:allocation? proto.md, "The `base:` metadata namespace"."""
    if nbd.BASE_ALLOCATION in queries:
        return True
    if option == nbd.OPT_SET_META_CONTEXT:
        return False
    return not queries or nbd.BASE_WILDCARD in queries
