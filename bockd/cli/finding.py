"""What a name or an id on the command line means, and which names it may be a mistyping of.

What is suggested comes from lists that the caller may see anyway: a tenant's own, or the
operator's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from bockd import errors
from bockd.model import NodeKind

MAX_SUGGESTIONS = 3

MAX_NEAR_LENGTH = 64
"""Characters of a name that is compared: the time for it grows with the square of this."""

MAX_SHOWN = 300
"""Characters of a name that is shown."""


class Named(Protocol):
    """What a reference may mean."""

    @property
    def id(self) -> int: ...
    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=Named)


def is_id(ref: str) -> bool:
    """Return whether a reference is an id. A name never consists of digits alone."""
    if not ref:
        raise errors.InvalidRequestError("an empty name or id refers to nothing")
    return ref.isascii() and ref.isdigit() and len(ref) < 20


@contextlib.contextmanager
def looked_for(kind: NodeKind, ref: str) -> Iterator[None]:
    """Report an id that does not exist in the same words as a name that does not."""
    try:
        yield
    except errors.NotFoundError as error:
        raise not_there(kind, ref) from error


def not_there(what: str, ref: str, names: Iterable[str] = ()) -> errors.NotFoundError:
    """Return the error that there is no volume, snapshot or image of this name or id. `names` are
    those that exist."""
    return errors.NotFoundError(
        f"there is no {what} {ref[:MAX_SHOWN]!r}; "
        + (did_you_mean(ref, names) or f"'bock {what} list' shows what there is")
    )


def choose(kind: NodeKind, name: str, found: list[N], everything: Callable[[], list[N]]) -> N:
    """Choose the only one that `name` fits. What has no display name goes by its name in the
    pool."""
    if not found:
        there = everything()
        found = [one for one in there if one.name == name]
        if not found:
            raise not_there(kind, name, (one.name for one in there))
    if len(found) > 1:
        ids = ", ".join(str(one.id) for one in found)
        raise errors.ConflictError(f"{len(found)} {kind}s are named {name!r}: give an id ({ids})")
    return found[0]


@contextlib.contextmanager
def suggesting(ref: str, names: Callable[[], Iterable[str]]) -> Iterator[None]:
    """Add to the error that nothing has this name, which the daemon has raised in the body, the
    names that are near."""
    try:
        yield
    except errors.NotFoundError as error:
        question = did_you_mean(ref, names())
        if not question:
            raise
        raise errors.NotFoundError(f"{str(error).partition(';')[0]}; {question}") from error


def did_you_mean(text: str, names: Iterable[str]) -> str:
    """Ask whether one of the names was meant that are near a text: "did you mean 'web'?", or "" if
    none is near. An id is not near another one."""
    if len(text) > MAX_NEAR_LENGTH or (text.isascii() and text.isdigit()):
        return ""
    import difflib  # for errors alone

    near = {name.casefold(): name for name in names if len(name) <= MAX_NEAR_LENGTH}
    found = difflib.get_close_matches(text.casefold(), near, MAX_SUGGESTIONS)
    shown = [repr(near[name]) for name in found]
    if len(shown) < 2:
        return "".join(f"did you mean {name}?" for name in shown)
    return f"did you mean {', '.join(shown[:-1])} or {shown[-1]}?"
