"""All that is measured, in the order of the report, and the choice of rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from bench import (
    aftersnapshot,
    apicost,
    cachehits,
    clones,
    coldreads,
    copies,
    features,
    fileview,
    footprint,
    fresh,
    inorder,
    mapqueries,
    rbd,
    several,
    snapshotcost,
    snapshotreads,
    tlscost,
    trims,
    wide,
    zeroing,
)
from bench.cephcluster import LentCluster
from bench.processes import BenchError
from bench.results import Failure, Section, wanted
from bench.rows import ROWS
from bench.throughput import measure_throughput
from bench.turns import BenchContext, Scale


@dataclass(frozen=True)
class _Part:
    """A section, and the names of its rows."""

    rows: Sequence[str]
    measure: Callable[[Scale, BenchContext, Sequence[str]], Section]
    """The rows that are asked for, at least one."""
    in_ceph: bool = False
    """In a cluster, which such parts that follow each other share."""


_PARTS = (
    _Part(aftersnapshot.ROWS, aftersnapshot.measure_after_snapshot),
    _Part(fresh.ROWS, fresh.measure_fresh),
    _Part(tuple(snapshotreads.ROWS.values()), snapshotreads.measure_snapshot_reads),
    _Part(inorder.ROWS, inorder.measure_in_order_reads),
    _Part(wide.ROWS, wide.measure_wide),
    _Part(coldreads.ROWS, coldreads.measure_cold_reads),
    _Part(several.ROWS, several.measure_several),
    _Part(fileview.ROWS, fileview.measure_file_view),
    _Part(tlscost.ROWS, tlscost.measure_tls),
    _Part(tuple(features.ROWS), features.measure_features),
    _Part(copies.ROWS, copies.measure_copies),
    _Part(mapqueries.ROWS, mapqueries.measure_map_queries),
    _Part(trims.ROWS, trims.measure_trims),
    _Part(zeroing.ROWS, zeroing.measure_zeroing),
    _Part(clones.ROWS, clones.measure_clones),
    _Part(
        snapshotcost.ROWS,
        lambda scale, context, _: snapshotcost.measure_snapshot_cost(scale, context),
    ),
    _Part(rbd.ROWS, rbd.measure_rbd, in_ceph=True),
    _Part(cachehits.ROWS, cachehits.measure_cache_hits, in_ceph=True),
    _Part(footprint.ROWS, footprint.measure_footprint),
    _Part(apicost.ROWS, lambda scale, context, _: apicost.measure_api_cost(scale, context)),
)


def all_rows() -> list[str]:
    """Return the names of all rows."""
    return [row.name for row in ROWS] + [row for part in _PARTS for row in part.rows]


def measure(
    patterns: Sequence[str], peers: Sequence[str], scale: Scale, context: BenchContext
) -> tuple[dict[str, str], tuple[Section, ...], tuple[Failure, ...]]:
    """Measure the rows that match. Return the settings of the servers, the sections, and what could
    not be measured: a failure in one section does not stop the others. Each part has a directory of
    its own. Raises BenchError when no row matches."""
    asked = _asked_for(patterns)
    if not asked:
        raise BenchError(f"no row matches {' or '.join(patterns)}; --list names them")
    settings: dict[str, str] = {}
    found: list[Section] = []
    failures: list[Failure] = []
    with closing(LentCluster()) as cluster:
        for number, part in enumerate((_against_others(peers, settings), *_PARTS)):
            if not part.in_ceph:
                cluster.close()
            if rows := [row for row in part.rows if row in asked]:
                # What the part before has written goes to the disk now, and not in between.
                os.sync()
                below = replace(_below(context, f"p{number}"), cluster=cluster)
                try:
                    found.append(part.measure(scale, below, rows))
                except BenchError as error:
                    failures.append(Failure(tuple(rows), str(error)))
                    context.tell(f"not measured: {', '.join(rows)}: {error}")
    return settings, tuple(found), tuple(failures)


def _against_others(peers: Sequence[str], settings: dict[str, str]) -> _Part:
    """The first section; fills in how each server ran."""

    def measure_rows(scale: Scale, context: BenchContext, rows: Sequence[str]) -> Section:
        chosen = [row for row in ROWS if row.name in rows]
        section, ran = measure_throughput(chosen, peers, scale, context)
        settings.update(ran)
        return section

    return _Part([row.name for row in ROWS], measure_rows)


def _asked_for(patterns: Sequence[str]) -> set[str]:
    """The rows that match; a row's whole name asks for that one only."""
    rows = all_rows()
    whole = [pattern for pattern in patterns if pattern in rows]
    parts = [pattern for pattern in patterns if pattern not in rows]
    return set(whole) | {row for row in rows if (parts or not whole) and wanted(row, parts)}


def _below(context: BenchContext, name: str) -> BenchContext:
    """A directory for one part. Names are short: socket paths must be."""
    directory: Path = context.directory / name
    directory.mkdir()
    return BenchContext(directory, context.placement, context.tell)
