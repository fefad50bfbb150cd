"""One run of bockd's side: an identity by Keystone, with clocks that the test sets."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from bockd.config.sections import KeystoneSettings
from bockd.identity.keystone.identity import KeystoneIdentity
from bockd.identity.keystone.opening import open_keystone

T = TypeVar("T")

TEST_SECONDS = 120.0
"""Nothing here takes as long, unless it hangs."""


class Clocks:
    """The time, and the time that has passed."""

    def __init__(self) -> None:
        self.offset = 0.0

    def now(self) -> float:
        return time.time() + self.offset

    def elapsed(self) -> float:
        return self.offset

    def forward(self, seconds: float) -> None:
        self.offset += seconds


def asking(
    settings: KeystoneSettings, scenario: Callable[[KeystoneIdentity, Clocks], Awaitable[T]]
) -> T:
    """Run a scenario against the Keystone of the settings."""

    async def main() -> T:
        clocks = Clocks()
        async with open_keystone(settings, clocks.now, clocks.elapsed) as identity:
            assert identity is not None
            with trio.fail_after(TEST_SECONDS):
                return await scenario(identity, clocks)

    return trio.run(main)
