"""Making files last (fdatasync): a blocking call that compiled threads can make as well."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import cast

from bockd.runtime.compiled import wanted
from bockd.runtime.steps import CompiledCall, Running


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


class Syncing(CompiledCall):
    """`await Syncing(call, descriptors)`: `call` does nothing but fdatasync these files.

    The files stay open until it has ended.
    """

    __slots__ = ("_descriptors",)

    def __init__(self, call: Callable[[], None], descriptors: Sequence[int]) -> None:
        super().__init__(call)
        self._descriptors = descriptors

    def _start(self) -> Running | None:
        return None if compiled is None else cast(Running | None, compiled.begin(self._descriptors))
