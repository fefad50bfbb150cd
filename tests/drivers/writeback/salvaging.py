"""Writing back what is whole of a damaged log, as the driver does before the rest is given up."""

from __future__ import annotations

from bockd.pool.caches import Salvaged

from .opened import IMAGE, Opened


def salvage(opened: Opened) -> Salvaged | None:
    """Do it, of a volume that is closed. Return what has become of the log."""
    reach = opened._reach()
    assert reach is not None
    begun = opened.run(opened.directory.salvage(opened.below, IMAGE, reach))
    if begun is None:
        return None
    try:
        opened.run(begun.drain())
    finally:
        opened.run(begun.close())
    return begun.result()
