"""Threads that write to the blocks of a volume, again and again, and know what was answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

WAIT_SECONDS = 120.0
"""For what comes in any case, on a machine that may be busy."""


class Writers:
    """Each thread has a block of its own and writes how often it has done so."""

    def __init__(self, write: Callable[[int, int], object], blocks: int) -> None:
        """`write` writes a number to a block, and returns when that was answered."""
        self.answered = dict.fromkeys(range(blocks), 0)
        self.longest_seconds = 0.0
        """Of one write."""
        self.errors: list[Exception] = []
        self._write = write
        self._stopping = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._write_on, args=(block,)) for block in range(blocks)
        ]

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        self.wait_for_writes()
        return self

    def __exit__(self, *_raised: object) -> None:
        """Let them end what they are at."""
        self._stopping = True
        for thread in self._threads:
            thread.join()

    def _write_on(self, block: int) -> None:
        number = 0
        while not self._stopping:
            number += 1
            began = time.monotonic()
            try:
                self._write(block, number)
            except Exception as error:  # noqa: BLE001 - shown by who waits
                with self._changed:
                    self.errors.append(error)
                    self._changed.notify_all()
                return
            with self._changed:
                self.answered[block] = number
                self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)
                self._changed.notify_all()

    def wait_for_writes(self, times: int = 2) -> None:
        """Until each block was written so many times more. AssertionError: a write failed."""
        with self._changed:
            goal = {block: number + times for block, number in self.answered.items()}
            done = self._changed.wait_for(
                lambda: self.errors or all(self.answered[one] >= goal[one] for one in goal),
                WAIT_SECONDS,
            )
        assert not self.errors, self.errors
        assert done, "the writers hang"
