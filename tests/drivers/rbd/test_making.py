"""What was made before a commit is removed only if it is certain that nothing names it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bockd.drivers.rbd.index import OutcomeUnknownError, SharedIndex
from bockd.drivers.rbd.log import Log
from bockd.drivers.rbd.making import GENERATIONS, begin_generation, generation, making
from bockd.errors import ConflictError, NoSpaceError, UnavailableError

from .memory import MemoryObjects


@pytest.fixture
def index(tmp_path: Path) -> SharedIndex:
    objects = MemoryObjects()
    Log(objects).create("0" * 32)
    return SharedIndex.open(Log(objects), tmp_path, run="1" * 16, clock=time.time)


@pytest.mark.parametrize(
    ("error", "removed"),
    [
        (ConflictError("refused"), True),
        (NoSpaceError("full"), True),
        (UnavailableError("no answer"), False),
        (OutcomeUnknownError("perhaps"), False),
        (RuntimeError("after the commit, perhaps"), False),
        (KeyboardInterrupt(), False),
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_failed_for_certain_is_removed(
    index: SharedIndex, error: BaseException, removed: bool
) -> None:
    calls: list[str] = []
    with pytest.raises(type(error)), making(index, "a thing", lambda: calls.append("removed")):
        raise error
    assert calls == ["removed"] * removed


def test_what_is_named_stays(index: SharedIndex) -> None:
    with making(index, "a thing", lambda: pytest.fail("it is named")) as permit:
        index.update(permit.check)


def test_it_may_be_named_until_the_second_generation_has_begun(index: SharedIndex) -> None:
    assert index.update(begin_generation) == 1

    def make_slowly() -> None:
        with making(index, "a thing", lambda: pytest.fail("the sweep does that")) as permit:
            for _ in range(GENERATIONS):
                index.update(permit.check)
                index.update(begin_generation)
            index.update(permit.check)

    with pytest.raises(UnavailableError, match="counts as left over"):
        make_slowly()
    assert index.update(generation) == 1 + GENERATIONS
