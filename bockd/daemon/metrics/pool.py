"""Metrics of the pool: its room, what is in it, its background work, what its driver counts."""

from __future__ import annotations

import os
import sys

import trio
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

import bockd
from bockd.daemon.backend import Backend
from bockd.daemon.walking import count_nodes, walk
from bockd.errors import BockdError
from bockd.nbd.server.fastlane import compiled
from bockd.pool.figures import Figure
from bockd.pool.nodes import Nodes
from bockd.pool.pool import Pool

_COUNTER = "_total"


def build_info(driver: str) -> Metric:
    """Return which daemon this is."""
    info = GaugeMetricFamily(
        "bockd_build_info",
        "Which bockd this is: 1.",
        labels=["version", "driver", "fast_lane", "python"],
    )
    lane = "python" if compiled is None else "compiled"
    python = ".".join(map(str, sys.version_info[:3]))
    info.add_metric([bockd.__version__, driver, lane, python], 1)
    return info


def room_metrics(room: os.statvfs_result | None) -> list[Metric]:
    """Return the space of what the pool stands on. Nothing, if that is not known."""
    if room is None:
        return []
    size = (room.f_blocks - room.f_bfree + room.f_bavail) * room.f_frsize
    found: list[Metric] = [
        GaugeMetricFamily(
            "bockd_pool_size_bytes",
            "Size of what the pool stands on, without what is reserved for root.",
            size,
        ),
        GaugeMetricFamily(
            "bockd_pool_free_bytes", "What of it is free.", room.f_bavail * room.f_frsize
        ),
    ]
    if room.f_files:  # else it has no such limit
        found.append(
            GaugeMetricFamily(
                "bockd_pool_free_inodes", "How many files it takes beside those.", room.f_favail
            )
        )
    return found


async def pool_metrics(backend: Backend, waiting: tuple[str, ...]) -> list[Metric]:
    """Return what is in the pool and what its driver counts; what cannot be read is left out."""
    found: list[Metric] = [
        GaugeMetricFamily(
            "bockd_waiting_work",
            "Background work that was put off, and is tried again ('bock info' says why).",
            len(waiting),
        )
    ]
    try:
        counts = await count_nodes(backend.pool)
        figures = backend.figures()
    except BockdError:
        return found
    return [
        *found,
        GaugeMetricFamily("bockd_pool_volumes", "Volumes in the pool.", counts.volumes),
        GaugeMetricFamily(
            "bockd_pool_snapshots",
            "Snapshots in the pool, with those that images are.",
            counts.snapshots,
        ),
        *map(figure_metric, figures),
        *await _backup_metrics(backend),
    ]


async def _backup_metrics(backend: Backend) -> list[Metric]:
    """Return when the pool was last backed up: nothing for a kind that is not copied by bockd."""
    if backend.backups is None:
        return []
    backups = await trio.to_thread.run_sync(backend.backups.made)
    return [
        GaugeMetricFamily(
            "bockd_local_last_backup_timestamp_seconds",
            "When the last backup that is whole had ended; 0 if none is known.",
            max((one.finished_at or 0 for one in backups), default=0),
        )
    ]


async def refused_volumes(pool: Pool) -> list[Metric]:
    """Count the volumes that are refused, used or not: nobody may be using one that has failed.
    Nothing, if the records cannot be read."""
    try:
        refused = await walk(
            pool, Nodes.volumes, lambda _, page: [one for one in page if pool.trouble(one)]
        )
    except BockdError:
        return []
    return [
        GaugeMetricFamily(
            "bockd_pool_volumes_refused",
            "Volumes, used or not, that have failed or could not be opened when that was last "
            "tried.",
            len(refused),
        )
    ]


def figure_metric(figure: Figure) -> Metric:
    """Return a figure of a driver as a metric."""
    names, values = [name for name, _ in figure.labels], [value for _, value in figure.labels]
    kind = CounterMetricFamily if figure.name.endswith(_COUNTER) else GaugeMetricFamily
    name = "bockd_" + figure.name.removesuffix(_COUNTER)
    family = kind(name, figure.about, labels=names)
    family.add_metric(values, figure.value)
    return family
