"""Scrubbing a pool that no daemon has, to its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from bockd.drivers.local.format.layout import Layout
from bockd.drivers.local.integrity.damage import scrub_status
from bockd.drivers.local.integrity.scrub import ScrubBatch, Scrubber
from bockd.drivers.local.registry import Registry
from bockd.errors import PoolFormatError
from bockd.pool.reports import ScrubStatus
from bockd.runtime.steps import Background, Steps, run_inline


def scrub_pool(
    path: Path,
    rate_bytes: int,
    *,
    restart: bool,
    only_look: bool,
    show: Callable[[ScrubStatus], None],
) -> ScrubStatus:
    """Read what has no checksums, then finish the pass under way or make a new one, at `rate_bytes`
    a second. `show` is called after each batch. Raises InUseError when a daemon has the pool, and
    what opening it raises. Blocks."""
    if not Layout(path).index_data.exists():
        raise PoolFormatError(f"there is no pool in {path}")
    registry = Registry.open(path, Background().spawn)
    scrubber = Scrubber(registry)

    def status() -> ScrubStatus:
        with registry.store.index.reading() as txn:
            return scrub_status(txn)

    def work(batch: Callable[[], Steps[ScrubBatch]]) -> None:
        more = True
        while more:
            began = time.monotonic()
            done = run_inline(batch())
            more = done.more
            if more:
                show(status())
                wanted = began + done.read_bytes / rate_bytes
                time.sleep(max(0.0, wanted - time.monotonic()))

    try:
        if not only_look:
            work(scrubber.read_on)
            if restart or not status().under_way:
                run_inline(scrubber.begin_pass())
            work(scrubber.verify_on)
        return status()
    finally:
        registry.release()
