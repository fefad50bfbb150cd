"""What was made before a commit is removed only if it is certain that nothing names it."""

from __future__ import annotations

import pytest

from bockd.drivers.rbd.index import OutcomeUnknownError
from bockd.drivers.rbd.making import making
from bockd.errors import ConflictError, NoSpaceError, UnavailableError


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
def test_what_failed_for_certain_is_removed(error: BaseException, removed: bool) -> None:
    calls: list[str] = []
    with pytest.raises(type(error)), making("a thing", lambda: calls.append("removed")):
        raise error
    assert calls == ["removed"] * removed


def test_what_is_named_stays() -> None:
    with making("a thing", lambda: pytest.fail("it is named")):
        pass
