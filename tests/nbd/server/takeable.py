"""A device that another gateway may take (bockd.pool.device.SharedDevice), over any other one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from bockd.errors import VolumeTakenError
from bockd.pool.device import BlockDevice
from bockd.runtime.steps import Signal

_AT_ONCE = frozenset({"try_read", "try_write", "try_trim", "try_extents", "commit"})
_WAITING = frozenset({"read", "write", "zero", "trim", "flush", "extents", "cache"})


class Takeable:
    """Passes everything on to a device until it is taken; then everything raises, and so does what
    was under way, whatever came of it."""

    def __init__(self, device: object) -> None:
        self.lost = Signal()
        self._device = device

    @classmethod
    def over(cls, device: object) -> tuple[Takeable, BlockDevice]:
        """Return the same twice: to take it, and to serve it."""
        made = cls(device)
        return made, cast(BlockDevice, made)

    def take(self) -> None:
        """Let another gateway take the device, which is known now."""
        self.lost.fire()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._device, name)
        if name in _AT_ONCE:
            return self._at_once(found)
        return self._waiting(found) if name in _WAITING else found

    def _refuse(self) -> None:
        if self.lost.fired:
            raise VolumeTakenError("volume 1: another gateway has taken the volume")

    def _at_once(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self._refuse()
            return method(*arguments)

        return call

    def _waiting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        async def run(*arguments: Any, **options: Any) -> Any:
            self._refuse()
            result = await method(*arguments, **options)
            self._refuse()
            return result

        return run
