"""Giving volumes back, and ending to read snapshots, when other gateways ask for it over the bus.

A volume is asked for by the name of its image, by whoever takes it; a snapshot by that of its snap,
by whoever deletes it: what is read of a snap that is gone would be zeros.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future

from bockd.drivers.rbd.messages import Manner
from bockd.drivers.rbd.opennodes import OpenNodes
from bockd.errors import UnavailableError
from bockd.model import NodeKind, VolumeId
from bockd.runtime.steps import Steps, try_spawn

log = logging.getLogger(__name__)

Post = Callable[[Callable[[], object]], object]
"""Has a function called on the owner thread soon. For any thread; raises RuntimeError when the loop
has ended."""

OnAsked = Callable[[VolumeId, Manner], Steps[None]]
"""Ends the connections of a volume that another gateway asks for firmly: returns when its requests
are answered and its users have left, or does not wait for that. Then the volume is closed."""


async def end_nothing(_volume: VolumeId, _manner: Manner) -> None:
    """Leave the connections of a volume alone: their requests fail when it is closed."""


class Releases:
    """What the bus calls, and what is done then."""

    def __init__(self, post: Post) -> None:
        self.on_asked: OnAsked = end_nothing
        self._post = post
        self._nodes: OpenNodes | None = None
        """None: nothing is open yet."""

    def begin(self, nodes: OpenNodes) -> None:
        """Look among these nodes from now on."""
        self._nodes = nodes

    def ask(self, name: str, manner: Manner) -> Future[bool]:
        """Give an image or a snap back, if this gateway has it. In a thread of Ceph's; see
        `bockd.drivers.rbd.bus.Release`."""
        answer: Future[bool] = Future()
        self._post(lambda: self._start(name, manner, answer))
        return answer

    def _start(self, name: str, manner: Manner, answer: Future[bool]) -> None:
        try:
            found = None if self._nodes is None else self._nodes.find(name)
        except Exception as error:  # noqa: BLE001 - for the bus, which logs it
            answer.set_exception(error)
            return
        if found is None or self._nodes is None:
            answer.set_result(True)
        elif not try_spawn(self._nodes.spawn, self._answer(*found, manner, answer)):
            # It is taken then.
            answer.set_exception(UnavailableError("this gateway is about to end"))

    async def _answer(
        self, kind: NodeKind, node: int, manner: Manner, answer: Future[bool]
    ) -> None:
        try:
            answer.set_result(await self.release(kind, node, manner))
        except Exception as error:  # noqa: BLE001 - for the bus, which logs it
            answer.set_exception(error)

    async def release(self, kind: NodeKind, node: int, manner: Manner) -> bool:
        """Give a volume or snapshot up, if it is open here: politely only if nobody uses it, firmly
        in any case. Return False if it is kept. What is dirty is written back first. Raises
        BockdError: it is closed nevertheless, unless that failed."""
        nodes = self._nodes
        assert nodes is not None
        if nodes.users(kind, node):
            if manner is Manner.POLITE:
                return False
            if kind is NodeKind.VOLUME:
                await self.on_asked(VolumeId(node), manner)
        if kind is NodeKind.VOLUME:
            await nodes.drain(VolumeId(node))

        async def close() -> bool:
            # It may have been opened since.
            if manner is Manner.POLITE and nodes.users(kind, node):
                return False
            await nodes.close(kind, node)
            return True

        return await nodes.exclusive(node, close)
