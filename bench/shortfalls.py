"""Why a target is missed and what was tried, in words: for the page, which knows only by how much.

Written by hand after a full run. The page prints an entry only while one of its rows misses its
target; a missed target without an entry stands there as not yet explained. State what was measured,
with its figures, or what can be read in the code; `python -m bench --from docs/performance.json
--write docs/performance.md` makes the page anew with changed texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Shortfall:
    """One reason for one or more missed targets; the first that matches a comparison is its."""

    title: str
    rows: tuple[str, ...]
    """Patterns of whole names of rows; "*" matches anything."""
    why: str
    tried: str
    against: str = "*"
    """A pattern of the name that is compared with."""

    def about(self, row: str, baseline: str) -> bool:
        """Whether this is the reason for a comparison."""
        matches = any(fnmatchcase(row, pattern) for pattern in self.rows)
        return matches and fnmatchcase(baseline, self.against)


SHORTFALLS = (
    Shortfall(
        title="Small random reads",
        rows=("4k-randread-qd*",),
        why=(
            "What a batch costs once is shared by its requests: one call receives them, one sends "
            "all replies. What is left for each request is Python's: its header is parsed, its "
            "leaf and slot are looked up, and one `preadv` copies the block from the page cache "
            "into the reply; the peers written in C pay for the last of these only, and for one "
            "or two calls more. In the run of 2026-11-24, on a faster processor, depth 32 reached "
            "143,415 reads/s, 1.10 times nbdkit file (0.85..1.30) and 1.67 times qemu-nbd qcow2."
        ),
        tried=(
            "Kept: whole batches with one receive and one send; a bounded poll of the socket "
            "before parking (`bockd/server/pace.py`), which saves the wake-up at low depth; "
            "`RWF_NOWAIT`, which needs no thread for what is in the page cache; the map's leaves "
            "as palettes in a dictionary."
        ),
    ),
    Shortfall(
        title="Small random writes",
        rows=("4k-randwrite-qd1", "4k-randwrite-qd32*", "4k-randwrite-qd128*"),
        why=(
            "As for reads, Python works on each request of a batch; then one `pwrite` for each "
            "copies it into the page cache, which is what every server of a file pays. In the run "
            "of 2026-11-24 depth 32 reached 116,370 writes/s, 1.14 times nbdkit file (1.06..1.19) "
            "and 2.01 times qemu-nbd qcow2."
        ),
        tried=(
            "Kept: a shorter way for in-place overwrites and one for the redirect of a single "
            "block; journal records for a whole batch in one `pwrite`, scattered blocks sharing a "
            "record; large writes stored in pieces of at most 64 KiB, because larger ones build "
            "large folios, which make every later 4 KiB overwrite of them several times dearer on "
            "ext4 (`bockd/store/layer.py`)."
        ),
    ),
    Shortfall(
        title="Large writes",
        rows=("64k-randwrite-qd16", "1m-write-qd8"),
        why=(
            "They are stored in pieces of at most 64 KiB: more calls for the same bytes, and small "
            "folios, which cost more here and are what keeps later 4 KiB overwrites cheap."
        ),
        tried="Nothing else so far.",
    ),
    Shortfall(
        title="Writes just after a snapshot",
        rows=("after-snapshot-4k-randwrite-qd32-*",),
        why=(
            "After a snapshot every block goes to a new place: the kernel makes a page and "
            "allocates a block where an overwrite finds both, and the change of the map is "
            "recorded in the journal and later in the index. In the run of 2026-11-24 that was "
            "92,304 writes/s against 149,626 before it, a ratio of 0.58 (0.57..0.87)."
        ),
        tried=(
            "Kept: a shorter way for the redirect of a single whole block, which reads and copies "
            "nothing; one journal append for a batch; scattered blocks sharing a record."
        ),
    ),
)
