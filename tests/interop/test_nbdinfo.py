"""libnbd's nbdinfo: what an export offers, its exact extents, and what is listed."""

from __future__ import annotations

import json
from typing import Any

import nbd

from ..daemon.process import Bockd

KIB = 1024
MIB = 1024 * KIB

DATA, HOLE = 0, 3
"""NBD's base:allocation: 3 is hole and reads as zeros."""


def extents(daemon: Bockd, export: str) -> list[tuple[int, int, int]]:
    """nbdinfo --map as (offset, length, type)."""
    found = json.loads(daemon.tool("nbdinfo", "--map", "--json", daemon.uri(export)))
    return [(entry["offset"], entry["length"], entry["type"]) for entry in found]


def listed(daemon: Bockd, uri: str) -> list[dict[str, Any]]:
    """nbdinfo --list."""
    found: list[dict[str, Any]] = json.loads(daemon.tool("nbdinfo", "--list", "--json", uri))[
        "exports"
    ]
    return found


def test_what_an_export_offers(daemon: Bockd) -> None:
    daemon.bock("volume", "create", "offered", "--size", "8M")
    document = json.loads(daemon.tool("nbdinfo", "--json", daemon.uri("offered")))
    assert document["protocol"] == "newstyle-fixed"
    assert document["structured"] is True
    (export,) = document["exports"]
    assert export["export-name"] == "offered"
    assert export["export-size"] == 8 * MIB
    assert export["contexts"] == ["base:allocation"]
    assert export["is_read_only"] is False
    for feature in ("cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"):
        assert export[f"can_{feature}"] is True, feature
    assert export["block_size_minimum"] == 1
    assert export["block_size_preferred"] == 4 * KIB
    assert export["block_size_maximum"] >= 64 * MIB


def test_a_snapshot_is_offered_read_only(daemon: Bockd) -> None:
    daemon.bock("volume", "create", "shot", "--size", "1M")
    daemon.bock("snapshot", "create", "shot", "shot-1")
    document = json.loads(daemon.tool("nbdinfo", "--json", daemon.uri("snapshot/shot-1")))
    (export,) = document["exports"]
    assert export["is_read_only"] is True
    assert export["can_multi_conn"] is True
    assert export["can_trim"] is False
    assert export["can_zero"] is False


def test_the_map_is_exact(daemon: Bockd) -> None:
    """Extents after writes that are aligned, that are not, and that meet in the middle; after
    trims of whole and of partial blocks; across the 1 MiB that a leaf of the map covers; and
    through a snapshot and its clone."""
    daemon.bock("volume", "create", "mapped", "--size", "16M")
    assert extents(daemon, "mapped") == [(0, 16 * MIB, HOLE)]
    with daemon.connected("mapped") as client:
        client.pwrite(b"a" * (8 * KIB), 64 * KIB)
        client.pwrite(b"b" * 10, 100 * KIB + 4090)  # ends in the block after
        client.pwrite(b"c" * (4 * MIB), 3 * MIB + 512 * KIB)
        client.pwrite(b"d", 16 * MIB - 1)
    written = [
        (0, 64 * KIB, HOLE),
        (64 * KIB, 8 * KIB, DATA),
        (72 * KIB, 28 * KIB, HOLE),
        (100 * KIB, 8 * KIB, DATA),
        (108 * KIB, 3 * MIB + 512 * KIB - 108 * KIB, HOLE),
        (3 * MIB + 512 * KIB, 4 * MIB, DATA),
        (7 * MIB + 512 * KIB, 8 * MIB + 508 * KIB, HOLE),
        (16 * MIB - 4 * KIB, 4 * KIB, DATA),
    ]
    assert extents(daemon, "mapped") == written

    daemon.bock("snapshot", "create", "mapped", "mapped-1")
    with daemon.connected("mapped") as client:
        client.trim(2 * MIB, 4 * MIB)  # 4M..6M, across leaves
        client.trim(12 * KIB - 2, 60 * KIB + 1)  # one whole block, and edges that stay
        client.zero(4 * KIB, 7 * MIB)  # a hole
        client.zero(4 * KIB, 8 * MIB, nbd.CMD_FLAG_NO_HOLE)
        client.pwrite(bytes(4 * KIB), 9 * MIB)  # zeros that were written are data
    trimmed = [
        (0, 68 * KIB, HOLE),
        (68 * KIB, 4 * KIB, DATA),
        (72 * KIB, 28 * KIB, HOLE),
        (100 * KIB, 8 * KIB, DATA),
        (108 * KIB, 3 * MIB + 512 * KIB - 108 * KIB, HOLE),
        (3 * MIB + 512 * KIB, 512 * KIB, DATA),
        (4 * MIB, 2 * MIB, HOLE),
        (6 * MIB, 1 * MIB, DATA),
        (7 * MIB, 4 * KIB, HOLE),
        (7 * MIB + 4 * KIB, 508 * KIB, DATA),
        (7 * MIB + 512 * KIB, 512 * KIB, HOLE),
        (8 * MIB, 4 * KIB, DATA),
        (8 * MIB + 4 * KIB, 1 * MIB - 4 * KIB, HOLE),
        (9 * MIB, 4 * KIB, DATA),
        (9 * MIB + 4 * KIB, 7 * MIB - 8 * KIB, HOLE),
        (16 * MIB - 4 * KIB, 4 * KIB, DATA),
    ]
    assert merged(extents(daemon, "mapped")) == trimmed
    assert merged(extents(daemon, "snapshot/mapped-1")) == written

    daemon.bock("volume", "create", "mapped-clone", "--from-snapshot", "mapped-1")
    assert merged(extents(daemon, "mapped-clone")) == written


def test_the_unix_socket_lists_everything_and_tcp_nothing(daemon: Bockd) -> None:
    daemon.bock("volume", "create", "seen", "--size", "1M")
    daemon.bock("snapshot", "create", "seen", "seen-1")
    names = {export["export-name"] for export in listed(daemon, daemon.uri(""))}
    assert {"seen", "snapshot/seen-1"} <= names

    tcp = f"nbd://127.0.0.1:{daemon.nbd_port}"
    assert "seen" not in daemon.run("nbdinfo", "--list", tcp).out
    for export in ("", "seen", "1", "snapshot/seen-1"):
        result = daemon.run("nbdinfo", "--size", f"{tcp}/{export}")
        assert (result.status, result.out) == (1, ""), result


def merged(found: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """A map is the same whether or not the server splits an extent."""
    result: list[tuple[int, int, int]] = []
    for offset, length, kind in found:
        if result and result[-1][2] == kind:
            offset, length = result[-1][0], result.pop()[1] + length
        result.append((offset, length, kind))
    return result
