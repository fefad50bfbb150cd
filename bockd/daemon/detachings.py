"""Detachments that are finished in the background, each once however often it is asked for.

A daemon finds at its start what it has left in the middle; with several gateways one finds later
what others have left, and what it had to give up itself (bockd.daemon.stranded).
"""

from __future__ import annotations

from functools import partial

from bockd.blockstorage.interrupted import detaching, finish_detaching
from bockd.blockstorage.records import OwnedVolume
from bockd.blockstorage.running import StorageContext
from bockd.blockstorage.working import Key
from bockd.daemon.retrying import MAY_PASS, Retrying
from bockd.model import NodeKind
from bockd.runtime.steps import blocking


class Detachings:
    """Those of one daemon. For the event loop's thread."""

    def __init__(self, context: StorageContext, retrying: Retrying) -> None:
        self._context = context
        self._retrying = retrying
        self._unfinished: set[Key] = set()

    def unfinished(self) -> frozenset[Key]:
        """Return the volumes whose detaching is under way, or waits to be tried again."""
        return frozenset(self._unfinished)

    def finish(self, owned: OwnedVolume) -> None:
        """Finish the detaching of a volume in the background. Do nothing while that is done."""
        key = (NodeKind.VOLUME, owned.volume.id)
        if key not in self._unfinished:
            self._unfinished.add(key)
            self._retrying.start(
                f"detaching volume {owned.volume.id}", partial(self._finish, key, owned)
            )

    async def _finish(self, key: Key, owned: OwnedVolume) -> None:
        try:
            # Somebody may have done so since it was put off.
            if owned in await blocking(detaching, self._context):
                await finish_detaching(self._context, owned)
        except MAY_PASS:
            raise  # it is tried again
        except BaseException:
            self._unfinished.discard(key)
            raise
        self._unfinished.discard(key)
