"""How many checkpoints the volumes of a pool have made, and what they took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from bockd.drivers.local.format.journal import RECORD_BYTES, JournalSegment


class CheckpointCounts:
    """Since the pool was opened, of all its volumes in this process."""

    def __init__(self) -> None:
        self.done = 0
        self.failed = 0
        self.seconds = 0.0
        self.journal_bytes = 0
        """Of records that were applied to the index."""

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count one that is made inside a `with` block."""
        begun = time.monotonic()
        try:
            yield
        except BaseException:
            self.failed += 1
            raise
        else:
            self.done += 1
        finally:
            self.seconds += time.monotonic() - begun

    def applied(self, segments: list[JournalSegment]) -> None:
        """Count segments whose records the index has now."""
        self.journal_bytes += sum(one.used for one in segments) * RECORD_BYTES
