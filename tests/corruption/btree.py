"""The fields of data.mdb, by offset: where a test flips bits.

Written apart from bockd.index.pages, which it is to judge. Only live pages count.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PAGE = 4096
_TREE = (
    ("pad", 4),
    ("flags", 2),
    ("depth", 2),
    ("branch pages", 8),
    ("leaf pages", 8),
    ("overflow pages", 8),
    ("entries", 8),
    ("root", 8),
)
_META = (("magic", 4), ("version", 4), ("address", 8), ("map size", 8))
_PAGE_HEADER = (("number", 8), ("pad", 2), ("flags", 2), ("lower", 2), ("upper", 2))
_NODE_HEADER = (("low", 2), ("high", 2), ("flags", 2), ("key length", 2))
_NOWHERE = (1 << 64) - 1


class Field(NamedTuple):
    """A run of bytes with one meaning; `kind` names the meaning."""

    kind: str
    offset: int
    length: int


def fields_of_index(data: Path) -> Iterator[Field]:
    """Every field of every page that the newest transaction leads to, and of both meta pages."""
    image = data.read_bytes()
    for page in (0, 1):
        yield from _meta(page)
    newest = max((0, 1), key=lambda page: _u64(image, page * PAGE + 144))
    yield from _tree(image, "free", newest * PAGE + 40)
    yield from _tree(image, "tables", newest * PAGE + 88)


def _meta(page: int) -> Iterator[Field]:
    at = page * PAGE
    yield from _run("meta page", at, _PAGE_HEADER)
    yield from _run("meta", at + 16, _META)
    yield from _run("meta: tree of free pages:", at + 40, _TREE)
    yield from _run("meta: tree of tables:", at + 88, _TREE)
    yield from _run("meta", at + 136, (("last page", 8), ("transaction", 8)))


def _tree(image: bytes, name: str, record: int) -> Iterator[Field]:
    root = _u64(image, record + 40)
    if root != _NOWHERE:
        yield from _page(image, name, root)


def _page(image: bytes, name: str, number: int) -> Iterator[Field]:
    at = number * PAGE
    flags, lower, _ = struct.unpack_from("<HHH", image, at + 10)
    leaf = bool(flags & 2)
    label = "leaf page" if leaf else "branch page"
    yield from _run(label, at, _PAGE_HEADER)
    count = (lower - 16) // 2
    yield Field(f"{label}: node offsets", at + 16, 2 * count)
    for index in range(count):
        node = at + struct.unpack_from("<H", image, at + 16 + 2 * index)[0]
        yield from _node(image, name, node, leaf, first=index == 0)


def _node(image: bytes, name: str, at: int, leaf: bool, *, first: bool) -> Iterator[Field]:
    low, high, flags, key_length = struct.unpack_from("<HHHH", image, at)
    yield from _run(f"{'leaf' if leaf else 'branch'} node", at, _NODE_HEADER)
    data = at + 8 + key_length
    if not leaf:
        if not first:
            yield Field("branch node: key", at + 8, key_length)
        yield from _page(image, name, low | high << 16 | flags << 32)
        return
    yield Field(f"{name}: key", at + 8, key_length)
    length = low | high << 16
    if name == "tables":
        yield from _run("table:", data, _TREE)
        yield from _tree(image, image[at + 8 : data].decode(), data)
    elif flags & 1:
        page = _u64(image, data)
        yield Field(f"{name}: overflow page", data, 8)
        yield from _run("overflow page", page * PAGE, (*_PAGE_HEADER[:3], ("pages", 4)))
        yield Field(f"{name}: value on pages of its own", page * PAGE + 16, length)
    else:
        yield Field(f"{name}: checksum", data, min(4, length))
        if length > 4:
            yield Field(f"{name}: value", data + 4, length - 4)


def _run(name: str, at: int, fields: tuple[tuple[str, int], ...]) -> Iterator[Field]:
    for field, length in fields:
        yield Field(f"{name} {field}", at, length)
        at += length


def _u64(image: bytes, at: int) -> int:
    value: int = struct.unpack_from("<Q", image, at)[0]
    return value
