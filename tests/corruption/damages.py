"""What can be done to a pool's files, as a list: every field of every page of the index, of every
journal segment, and every file as a whole."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from bockd.drivers.local.format.journal import HEADER_BYTES, RECORD_BYTES, SEGMENT_BYTES
from bockd.drivers.local.format.layout import Layout
from bockd.model import VolumeId
from tests.corruption.btree import PAGE, fields_of_index
from tests.corruption.specimen import Truth


@dataclass(frozen=True)
class Damage:
    """One thing done to a copy of the pool."""

    kind: str
    """What sort of thing it is done to: a sample takes some of each."""
    what: str
    apply: Callable[[Path], None]
    only: VolumeId | None = None
    """The one volume that may suffer; None: any part of the pool may."""
    part: str = ""
    """"index", "journal" or "files"."""


def all_damages(truth: Truth, random: Random) -> list[Damage]:
    """Everything, with random bits and bytes."""
    parts = {
        "index": [*_index_flips(truth, random), *_index_pages(truth, random)],
        "journal": list(_journal_flips(truth, random)),
        "files": list(_whole_files(truth, random)),
    }
    return [replace(one, part=part) for part, damages in parts.items() for one in damages]


def sample(damages: list[Damage], random: Random, each: int) -> list[Damage]:
    """At most `each` of every kind."""
    kinds: dict[str, list[Damage]] = {}
    for damage in damages:
        kinds.setdefault(damage.kind, []).append(damage)
    return [one for group in kinds.values() for one in random.sample(group, min(each, len(group)))]


# -- the index ---------------------------------------------------------------------------------


def _index_flips(truth: Truth, random: Random) -> Iterator[Damage]:
    for field in fields_of_index(truth.root / "index" / "data.mdb"):
        for byte in range(field.length):
            yield _flip("index/data.mdb", field.kind, field.offset + byte, random.randrange(8))


def _index_pages(truth: Truth, random: Random) -> Iterator[Damage]:
    name = "index/data.mdb"
    data = truth.root / name
    fields = list(fields_of_index(data))
    pages = sorted({field.offset // PAGE for field in fields})
    for page in pages:
        noise, other = random.randbytes(PAGE), random.choice(pages)
        yield Damage("page: noise", f"page {page} of {name}", _writer(name, page * PAGE, noise))
        zeros = bytes(PAGE)
        yield Damage("page: zeros", f"page {page} of {name}", _writer(name, page * PAGE, zeros))
        content = data.read_bytes()[other * PAGE : (other + 1) * PAGE]
        if other != page:
            yield Damage(
                "page: another one", f"{other} as {page}", _writer(name, page * PAGE, content)
            )
        sector = page * PAGE + 512 * random.randrange(8)
        yield Damage(
            "page: a lost sector", f"{sector} of {name}", _writer(name, sector, bytes(512))
        )
        yield Damage("index cut at a page", f"{page} pages", _truncater(name, page * PAGE))
        yield Damage("index cut within a page", f"page {page}", _truncater(name, page * PAGE + 99))


# -- journals ----------------------------------------------------------------------------------

_HEADER_FIELDS = {
    "magic": (0, 8),
    "format": (8, 4),
    "number": (12, 4),
    "volume": (16, 8),
    "generation": (24, 8),
    "boot id": (32, 36),
    "checksum": (68, 4),
    "padding": (72, 4024),
}
_RECORD_FIELDS = {
    "checksum": (0, 4),
    "kind": (4, 4),
    "sequence": (8, 8),
    "start": (16, 8),
    "count": (24, 8),
}


def _journal_flips(truth: Truth, random: Random) -> Iterator[Damage]:
    layout = Layout(truth.root)
    for path in map(layout.journal_segment, layout.journal_segments()):
        name = f"journal/{path.name}"
        volume = VolumeId(int(path.name.split(".")[0]))
        for field, (start, length) in _HEADER_FIELDS.items():
            for byte in random.sample(range(start, start + length), min(length, 8)):
                kind = f"journal header: {field}"
                yield _flip(name, kind, byte, random.randrange(8), volume)
        image = path.read_bytes()
        used = -(-len(image.rstrip(b"\0")) // RECORD_BYTES) * RECORD_BYTES
        for at in range(HEADER_BYTES, used, RECORD_BYTES):
            kinds = struct.unpack_from("<I", image, at + 4)[0]
            for field, (start, length) in _RECORD_FIELDS.items():
                byte = at + start + random.randrange(length)
                kind = f"journal record {kinds if kinds < 6 else 'of numbers'}: {field}"
                yield _flip(name, kind, byte, random.randrange(8), volume)
        for _ in range(8):
            byte = random.randrange(max(used, HEADER_BYTES), SEGMENT_BYTES)
            yield _flip(name, "journal: unwritten", byte, random.randrange(8), volume)


# -- whole files -------------------------------------------------------------------------------


def _whole_files(truth: Truth, random: Random) -> Iterator[Damage]:
    files = sorted(path for path in truth.root.rglob("*") if path.is_file())
    for path in files:
        name = str(path.relative_to(truth.root))
        size = path.stat().st_size
        group = name.split("/")[0] if "/" in name else name
        group = name if group == "index" else group
        only = VolumeId(int(path.name.split(".")[0])) if group == "journal" else None
        cuts = {"emptied": 0, "halved": size // 2, "a byte shorter": max(0, size - 1)}
        for how, length in cuts.items():
            yield Damage(f"{group} {how}", name, _truncater(name, length), only)
        longer = _writer(name, size, random.randbytes(5000))
        yield Damage(f"{group} extended", name, longer, only)
        yield Damage(f"{group} removed", name, _remover(name), only)
        peers = [
            peer
            for peer in files
            # A layer is a raw image: which one it is, nothing in it says (of the same length).
            if peer != path and peer.parent == path.parent and not _passes(peer, path)
        ]
        if peers:
            other = str(random.choice(peers).relative_to(truth.root))
            yield Damage(f"{group} replaced", f"{name} by {other}", _replacer(name, other), only)


def _passes(peer: Path, path: Path) -> bool:
    return path.parent.name == "layers" and peer.stat().st_size >= path.stat().st_size


# -- doing it ----------------------------------------------------------------------------------


def _flip(name: str, kind: str, at: int, bit: int, only: VolumeId | None = None) -> Damage:
    def apply(root: Path) -> None:
        with (root / name).open("r+b") as file:
            file.seek(at)
            value = file.read(1)[0]
            file.seek(at)
            file.write(bytes([value ^ 1 << bit]))

    return Damage(kind, f"bit {bit} of byte {at} of {name}", apply, only)


def _writer(name: str, at: int, data: bytes) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        with (root / name).open("r+b") as file:
            file.seek(at)
            file.write(data)

    return apply


def _truncater(name: str, length: int) -> Callable[[Path], None]:
    return lambda root: os.truncate(root / name, length)


def _remover(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def _replacer(name: str, other: str) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        (root / name).write_bytes((root / other).read_bytes())

    return apply
