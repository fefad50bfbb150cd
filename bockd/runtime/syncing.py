"""Making files last (fdatasync): a blocking call that compiled threads can make as well.

A runner may treat a `Syncing` as any other `Blocking`. One that can wait for a descriptor saves
both changes to a thread of Python: it begins the sync, waits for its descriptor and resumes the
operation, which then meets what came of it. `_syncing.c` has the threads; where it was not
compiled, or no thread can be started, `begin` refuses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from types import ModuleType
from typing import Any

from bockd.runtime.compiled import wanted
from bockd.runtime.steps import Blocking, Step


def load(environ: Mapping[str, str]) -> ModuleType | None:
    """Import the compiled module. None where it was not built, or is not wanted."""
    if not wanted(environ):
        return None
    try:
        from bockd.runtime import _syncing
    except ImportError:
        return None
    return _syncing


compiled = load(os.environ)


class Syncing(Blocking[None]):
    """`await Syncing(call, descriptors)`: `call` does nothing but fdatasync these files.

    The files stay open until it has ended.
    """

    __slots__ = ("_descriptors", "_error", "_sync")

    def __init__(self, call: Callable[[], None], descriptors: Sequence[int]) -> None:
        super().__init__(call)
        self._descriptors = descriptors
        self._sync: Any = None
        self._error = -1

    def begin(self) -> bool:
        """Begin to sync in a thread that needs no interpreter, unless that was done. Return False,
        with nothing begun, where `call` is to be made instead."""
        if self._sync is None and compiled is not None:
            self._sync = compiled.begin(self._descriptors)
        return self._sync is not None

    def fileno(self) -> int:
        """Return the descriptor of a sync that has begun: readable once it has ended."""
        descriptor: int = self._sync.fileno()
        return descriptor

    def ended(self) -> bool:
        """Return whether a sync that has begun is over: the operation is to be resumed then. Not
        to be asked again after that."""
        self._error = self._sync.result()
        return self._error >= 0

    def wait(self, one: int, other: int, nanoseconds: int) -> bool:
        """Block until a sync that has begun is over, one of two descriptors is readable, a signal
        has come or the time is over. Return as `ended` does."""
        self._error = self._sync.wait(one, other, nanoseconds)
        return self._error >= 0

    def __await__(self) -> Generator[Step, Any, None]:
        yield self
        if self._sync is not None and self._error:
            raise OSError(self._error, os.strerror(self._error))
