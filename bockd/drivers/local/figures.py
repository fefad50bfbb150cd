"""What a local pool counts and measures of itself. Each takes the same moment whatever its size."""

from __future__ import annotations

from bockd.drivers.local.format.checksums import DAMAGED
from bockd.drivers.local.format.queue import RECLAIM
from bockd.drivers.local.registry import Registry
from bockd.pool.figures import Figure


def figures(registry: Registry) -> list[Figure]:
    """Measure the pool of a registry."""
    counts = registry.store.checkpoints
    with registry.store.index.reading() as txn:
        queued, damaged = txn.count(RECLAIM), txn.count(DAMAGED)
    return [
        Figure(
            "local_open_volumes",
            "Volumes that are open, used or not: each has a journal once it was written to.",
            len(registry.volumes),
        ),
        Figure(
            "local_checkpoints_total",
            "Checkpoints of volumes' journals that have ended well.",
            counts.done,
        ),
        Figure(
            "local_checkpoint_failures_total",
            "Checkpoints that have failed; they are tried again.",
            counts.failed,
        ),
        Figure(
            "local_checkpoint_seconds_total",
            "How long checkpoints have taken together, those that failed as well.",
            counts.seconds,
        ),
        Figure(
            "local_journal_bytes_total",
            "Bytes of records in the journal segments that were applied to the index.",
            counts.journal_bytes,
        ),
        Figure(
            "local_reclaim_queue_entries",
            "What reclaim has still to do: dead maps, ranges to punch, layers to remove.",
            queued,
        ),
        Figure(
            "local_damaged_blocks",
            "Blocks of snapshots that do not have their checksums, as last read.",
            damaged,
        ),
    ]
