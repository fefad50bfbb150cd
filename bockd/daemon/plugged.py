"""The pluggers of the daemon, by the kind of server (bockd.blockstorage.plugging.Devices)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from bockd.blockstorage.contract import Attachment
from bockd.blockstorage.plugging import DevicePlugger
from bockd.errors import BockdError, NotSupportedError, UnavailableError
from bockd.model import Server, ServerKind
from bockd.runtime.asyncbridge import AsyncBridge

log = logging.getLogger(__name__)

_NEEDS_A_PLUGGER = frozenset({ServerKind.VM})


class PluggedDevices:
    """Calls the plugger of a server's kind. `bridge` is where its methods run."""

    def __init__(self, bridge: AsyncBridge, pluggers: Mapping[ServerKind, DevicePlugger]) -> None:
        self._bridge = bridge
        self._pluggers = pluggers

    async def plug(
        self, server: Server, attachment: Attachment, size_bytes: int
    ) -> Mapping[str, str]:
        """Plug the device in, with the plugger of the server's kind. Raise NotSupportedError for a
        kind that needs a plugger and has none, so that nobody believes that the device is there."""
        plugger = self._pluggers.get(server.kind)
        if plugger is None:
            if server.kind in _NEEDS_A_PLUGGER:
                raise NotSupportedError(
                    f"server {server.name} is a {server.kind}, and this daemon plugs no devices "
                    "into those; register it as a host or a plain server"
                )
            return {}
        with _in_our_terms(server):
            return await self._bridge.call(lambda: plugger.plug(server, attachment, size_bytes))

    async def resize(self, server: Server, attachment: Attachment, size_bytes: int) -> None:
        """Resize the device. Do nothing for a kind that has no plugger: such servers connect by
        themselves."""
        plugger = self._pluggers.get(server.kind)
        if plugger is not None:
            with _in_our_terms(server):
                await self._bridge.call(lambda: plugger.resize(server, attachment, size_bytes))

    async def unplug(self, server: Server, attachment: Attachment, *, force: bool) -> None:
        """Unplug the device. Do nothing for a kind that has no plugger."""
        plugger = self._pluggers.get(server.kind)
        if plugger is not None:
            with _in_our_terms(server):
                await self._bridge.call(lambda: plugger.unplug(server, attachment, force=force))


@contextmanager
def _in_our_terms(server: Server) -> Iterator[None]:
    """A plugger's bug must not leave a volume between two statuses."""
    try:
        yield
    except BockdError:
        raise
    except Exception as error:
        log.exception("the plugger of server %s failed unexpectedly", server.name)
        raise UnavailableError(f"server {server.name}: internal error; see the log") from error
