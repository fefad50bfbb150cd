"""The one way in: a file of any format that is read becomes a `Trace`."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Final

from bockd.errors import BockdError, InvalidRequestError
from bockd.trace.blkparse import looks_like_blkparse, read_blkparse
from bockd.trace.iolog import FIRST_WORDS, read_iolog
from bockd.trace.records import (
    MAGIC,
    Ending,
    Header,
    Record,
    in_order,
    read_header,
    read_records,
)

STANDARD_INPUT: Final = "-"
_PEEK_BYTES: Final = 4096
_BLKTRACE: Final = b"\x07tae"
"""How blktrace's binary files begin, on machines that are little-endian."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace that is being read."""

    name: str
    format: str
    header: Header
    ending: Ending
    """Filled once all records were read."""
    records: Iterator[Record]
    """In the order of arrival. Raises InvalidRequestError where the file is damaged."""


@contextmanager
def open_trace(path: str) -> Iterator[Trace]:
    """Open a trace; `-` is standard input. Raises InvalidRequestError for a file that is none,
    BockdError for one that cannot be read."""
    piped = path == STANDARD_INPUT
    name = "standard input" if piped else path
    with ExitStack() as stack:
        with _naming_errors(name):
            file = stack.enter_context(open(0 if piped else path, "rb", closefd=not piped))
            found = _recognized(file, name)
        yield replace(found, records=_naming(found.records, name))


def _naming(records: Iterator[Record], name: str) -> Iterator[Record]:
    with _naming_errors(name):
        yield from records


@contextmanager
def _naming_errors(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BockdError(f"cannot read {name}: {error.strerror}") from error


def _recognized(file: io.BufferedReader, name: str) -> Trace:
    """Find out what a file holds."""
    begin = file.peek(_PEEK_BYTES)
    if begin.startswith(MAGIC):
        header = read_header(file, name)
        ending = Ending()
        return Trace(name, "bockd", header, ending, in_order(read_records(file, name, ending)))
    foreign = Header(os.path.basename(name), None, None, None)
    if begin.startswith(FIRST_WORDS):
        records = in_order(read_iolog(file, name))
        return Trace(name, "fio iolog", foreign, Ending(complete=True), records)
    if looks_like_blkparse(begin.partition(b"\n")[0]):
        records = in_order(read_blkparse(file, name))
        return Trace(name, "blkparse", foreign, Ending(complete=True), records)
    raise InvalidRequestError(
        f"{name} is no trace: bockd's own, fio's iolog (versions 2 and 3) and the text of blkparse "
        "are read"
        + (" (it is empty)" if not begin else "")
        + ("; print this with blkparse" if begin.startswith(_BLKTRACE) else "")
    )
