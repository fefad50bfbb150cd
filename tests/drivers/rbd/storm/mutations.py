"""Ways to break what keeps gateways apart, each of which a storm must notice."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from bockd.config.rbd import RbdSettings


class Mutation(StrEnum):
    """What is broken in each daemon."""

    NOBODY_IS_SHUT_OUT = "a lock is broken without the blocklist"
    THE_LOST_ANSWER = "a device that is lost tells nobody, and answers requests"


def break_for_good(mutation: Mutation) -> None:
    """Break this process. It is a daemon that has just begun."""
    _BREAKING[mutation]()


def _shut_nobody_out() -> None:
    from bockd.drivers.rbd import settings, volumeimage

    def broken(given: RbdSettings) -> settings.Options:
        return {**settings.volume_options(given), "rbd_blocklist_on_break_lock": "false"}

    setattr(volumeimage, "volume_options", broken)  # noqa: B010 - imported there, not exported


def _answer_though_lost() -> None:
    from bockd.drivers.rbd.device import RbdDevice
    from bockd.errors import VolumeTakenError
    from bockd.runtime.steps import Signal

    class Silent(Signal):
        def fire(self) -> None:
            """Do nothing."""

    begin, write = RbdDevice.__init__, RbdDevice.write

    def begin_silent(self: RbdDevice, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        self.lost = Silent()

    async def write_anyway(self: RbdDevice, offset: int, data: memoryview) -> None:
        try:
            await write(self, offset, data)
        except VolumeTakenError:
            return

    setattr(RbdDevice, "__init__", begin_silent)  # noqa: B010 - of a class
    setattr(RbdDevice, "write", write_anyway)  # noqa: B010


_BREAKING = {
    Mutation.NOBODY_IS_SHUT_OUT: _shut_nobody_out,
    Mutation.THE_LOST_ANSWER: _answer_though_lost,
}
