"""What gateways have begun that are gone: resolved by one that lives.

A gateway that dies and starts again resolves what it has begun itself. One that does not come back
leaves volumes that are neither here nor there, so the others ask after it: after every gateway that
the index lists, and every run that works on something (bockd.blockstorage.working). A run that does
not answer twice in a row is taken for gone. If it only hung, it finds its work resolved when it
comes back, and changes nothing.

A gateway that lives leaves something, too, where the cluster answers neither to the commit that
ends an operation nor to the one that takes it back. So each round looks for what is in the middle
of something that nobody works on here any more.
"""

from __future__ import annotations

import logging

import trio

from bockd.blockstorage.interrupted import resolve_interrupted
from bockd.blockstorage.running import StorageContext
from bockd.blockstorage.working import Key, Whose, begun, workers
from bockd.daemon.backend import GatewayControl
from bockd.daemon.detachings import Detachings
from bockd.errors import BockdError, InUseError
from bockd.runtime.steprunner import StepRunner

log = logging.getLogger(__name__)

ROUND_SECONDS = 30.0
"""Between two rounds of questions: longer than the network, or a watch of the bus, may be gone."""


class Stranded:
    """The rounds of one gateway."""

    def __init__(
        self,
        context: StorageContext,
        gateways: GatewayControl,
        runner: StepRunner,
        detachings: Detachings,
        round_seconds: float = ROUND_SECONDS,
    ) -> None:
        self._context = context
        self._gateways = gateways
        self._runner = runner
        self._detachings = detachings
        self._round_seconds = round_seconds
        self._silent: set[str] = set()
        """Who has not answered in the last round."""
        self._idle: set[Key] = set()
        """What nobody has worked on in the last round, though this gateway has begun it."""
        self._told: str | None = None

    async def run(self) -> None:
        """Ask and resolve, until cancelled. Raises InUseError: another daemon has this gateway's
        name, so this one must end."""
        while True:
            await trio.sleep(self._round_seconds)
            await trio.to_thread.run_sync(self._keep)
            try:
                await self.round()
                self._told = None
            except BockdError as error:
                self._tell(error)
            except Exception:
                # Whatever a record holds, volumes are served.
                log.exception("looking after the other gateways")

    def _keep(self) -> None:
        try:
            self._gateways.keep()
        except InUseError:
            raise
        except BockdError as error:
            self._tell(error)

    def _tell(self, error: BockdError) -> None:
        """Log trouble once."""
        if str(error) != self._told:
            log.warning("the other gateways are not looked after: %s", error)
        self._told = str(error)

    async def round(self) -> None:
        """Ask all that may be gone; resolve what those have begun that did not answer in the last
        round, either. Raises BockdError: nobody can be asked."""
        silent = await trio.to_thread.run_sync(self._ask)
        gone = silent & self._silent
        self._silent = silent - gone
        for author in sorted(gone):
            await self._resolve_gone(author)
        await self._resolve_own()

    def _ask(self) -> set[str]:
        """Who does not answer."""
        self._context.pool.index.refresh()
        with self._context.pool.index.reading() as txn:
            asked = workers(txn)
        asked = (asked | self._gateways.others()) - {self._gateways.author}
        return {author for author in sorted(asked) if not self._gateways.is_alive(author)}

    async def _resolve_gone(self, author: str) -> None:
        log.warning(
            "gateway %s does not answer; what it has begun is resolved here",
            author.rpartition("/")[0],
        )
        await self._resolve(lambda worker, _key: worker == author)
        await trio.to_thread.run_sync(self._gateways.forget, author)

    async def _resolve_own(self) -> None:
        """Resolve what this gateway has begun, and has had to give up."""
        own = self._gateways.author
        # As it was before the look, too: what has ended meanwhile is in the middle of nothing.
        busy = {*self._context.at_work, *self._detachings.unfinished()}
        ours = await trio.to_thread.run_sync(self._begun_by, own)
        idle = ours - busy - self._context.at_work.keys() - self._detachings.unfinished()
        stuck = idle & self._idle
        self._idle = idle - stuck
        if not stuck:
            return
        log.warning("what the cluster has not let this gateway end is resolved now")

        def whose(worker: str | None, key: Key) -> bool:
            return worker == own and key in stuck and key not in self._context.at_work

        await self._resolve(whose)

    def _begun_by(self, author: str) -> set[Key]:
        """What a run has begun. Decodes all records: not for the event loop."""
        with self._context.pool.index.reading() as txn:
            return {key for key, worker in begun(txn).items() if worker == author}

    async def _resolve(self, whose: Whose) -> None:
        for owned in await self._runner.run(resolve_interrupted(self._context, whose)):
            self._detachings.finish(owned)
