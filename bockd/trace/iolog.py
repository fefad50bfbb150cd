"""fio's iolog, versions 2 and 3: text, a line for each request (fio(1), "Trace file format").

    fio version 3 iolog                 fio version 2 iolog
    <time> <file> add                   <file> add
    <time> <file> open                  <file> open
    <time> <file> read 4096 512         <file> read 4096 512
    <time> <file> close                 <file> wait 1000 0

Times of version 3 count from the beginning; fio 3.33 writes and takes microseconds. What version 2
says in `wait` is read as fio(1) has it, microseconds after the wait before, and not written.

An iolog has no latencies, no FUA, no zeroes, no read-ahead and no block status. Written zeroes
become trims, and the last two are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final, TextIO

from bockd.errors import InvalidRequestError
from bockd.model import MAX_VOLUME_BYTES
from bockd.trace.records import FUA, Kind, Record

FIRST_WORDS: Final = b"fio version "
_VERSIONS: Final = {b"fio version 2 iolog": 2, b"fio version 3 iolog": 3}
_KIND_OF: Final = {
    "read": Kind.READ,
    "write": Kind.WRITE,
    "sync": Kind.FLUSH,
    "datasync": Kind.FLUSH,
    "trim": Kind.TRIM,
}
_WORD_OF: Final = {
    Kind.READ: "read",
    Kind.WRITE: "write",
    Kind.FLUSH: "sync",
    Kind.TRIM: "trim",
    Kind.ZERO: "trim",
}
_FILE_ACTIONS: Final = frozenset({"add", "open", "close"})
_MAX_LINE_BYTES: Final = 4096
"""What fio reads of one."""
_MAX_LENGTH: Final = (1 << 32) - 512
"""fio has lengths of 32 bits. Longer trims are written as several."""
_NO_SPACES: Final = {ord(" "): "_", ord("\t"): "_", ord("\n"): "_"}


def read_iolog(file: BinaryIO, name: str) -> Iterator[Record]:
    """Yield the requests of an iolog. Raises InvalidRequestError, which names the line."""
    first = file.readline(_MAX_LINE_BYTES).strip()
    version = _VERSIONS.get(first)
    if version is None:
        raise InvalidRequestError(
            f"{name}: line 1: {first[:40].decode(errors='replace')!r}: fio's iologs of the "
            "versions 2 and 3 are read"
        )
    reader = _Reader(name, version)
    for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE_BYTES), b""), 2):
        try:
            record = reader.take(line, number)
        except ValueError as error:
            raise InvalidRequestError(f"{name}: line {number}: {error}") from error
        if record is not None:
            yield record


class _Reader:
    """Reads line by line."""

    def __init__(self, name: str, version: int) -> None:
        self._name = name
        self._version = version
        self._file: str | None = None
        self._time_ns = 0

    def take(self, line: bytes, number: int) -> Record | None:
        """Return the request of a line, if it has one. Raises ValueError."""
        if not line.endswith(b"\n"):
            raise ValueError("it is cut short")
        words = line.decode(errors="surrogateescape").split()
        if not words:
            return None
        if self._version == 3:
            self._time_ns = _number(words.pop(0), "a time in microseconds") * 1000
        if len(words) == 2 and words[1] in _FILE_ACTIONS:
            self._know(words[0])
            return None
        if len(words) != 4:
            raise ValueError("a file, an action, an offset and a length are wanted")
        file, action, offset, length = words
        self._know(file)
        if action == "wait" and self._version == 2:
            self._time_ns += _number(offset, "microseconds") * 1000
            return None
        kind = _KIND_OF.get(action)
        if kind is None:
            raise ValueError(f"{action!r} is no action of version {self._version}")
        begin, count = _number(offset, "an offset"), _number(length, "a length")
        if begin + count > MAX_VOLUME_BYTES:
            raise ValueError("no volume is so large")
        if kind is Kind.FLUSH:
            begin = count = 0
        return Record(self._time_ns, number, kind, 0, begin, count, 0)

    def _know(self, file: str) -> None:
        """Raise ValueError for a second file: a trace is of one volume."""
        if self._file is None:
            self._file = file
        elif self._file != file:
            raise ValueError(
                f"a second file, {file!r} beside {self._file!r}: a trace is of one volume, so "
                "write an iolog of each file"
            )


def _number(word: str, what: str) -> int:
    if not (word.isascii() and word.isdigit()) or len(word) > 19:
        raise ValueError(f"{word[:40]!r} is not {what}")
    return int(word)


class Written:
    """What became of a trace as it was written."""

    def __init__(self) -> None:
        self.requests = 0
        self.left_out = 0
        """Requests that an iolog cannot have."""
        self.simplified = 0
        """Requests that lost their FUA, or were zeroes."""


def write_iolog(
    records: Iterable[Record], file: TextIO, volume: str, version: int, written: Written
) -> None:
    """Write records, which come in the order of arrival, as an iolog, and count them in `written`.
    Raises OSError."""
    path = volume.translate(_NO_SPACES)
    timed = version == 3
    start = "0 " if timed else ""
    file.write(f"fio version {version} iolog\n{start}{path} add\n{start}{path} open\n")
    prefix = ""
    last_us = 0
    for record in records:
        word = _WORD_OF.get(record.kind)
        if word is None:
            written.left_out += 1
            continue
        written.requests += 1
        written.simplified += record.kind is Kind.ZERO or bool(record.flags & FUA)
        if timed:
            last_us = max(last_us, record.time_ns // 1000)
            prefix = f"{last_us} "
        for offset, length in _pieces(record):
            file.write(f"{prefix}{path} {word} {offset} {length}\n")
    file.write(f"{last_us} {path} close\n" if timed else f"{path} close\n")


def _pieces(record: Record) -> Iterator[tuple[int, int]]:
    offset, end = record.offset, record.offset + record.length
    yield offset, min(end - offset, _MAX_LENGTH)
    for begin in range(offset + _MAX_LENGTH, end, _MAX_LENGTH):
        yield begin, min(end - begin, _MAX_LENGTH)
