"""How a section says what its keys are: a dataclass whose fields are made by these functions.

    @dataclass(frozen=True, slots=True)
    class NbdSettings(Section):
        listen: Address | None = key(DEFAULT, read_listen)

The names of the fields are the keys of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, TypeVar

T = TypeVar("T")
U = TypeVar("U")
S = TypeVar("S", bound="Section")

READ, SECTION, NAMED = "read", "section", "named"


@dataclass(frozen=True, slots=True)
class Section:
    """A table of the file."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """What keys that are right one by one are not together: key, as it is written from here
        on ("nbd.tls"), and reason."""
        yield from ()


def key(default: T, read: Callable[[object], U]) -> T | U:
    """A key with one value."""
    # To the type checker this is the field's default, which is what it is.
    return field(default=default, metadata={READ: read})


def section(kind: type[S]) -> S:
    """A table within: `[name]`. Left out, it has the defaults of its keys."""
    return field(default_factory=kind, metadata={SECTION: kind})


def named(value: type[T] | Callable[[object], T]) -> Mapping[str, T]:
    """A table whose keys the user chooses, for values of one kind: a `Section` or one value."""
    return field(default_factory=dict, metadata={NAMED: value})


def section_fields(kind: type[Section]) -> dict[str, Field[Any]]:
    """The fields of a section by name."""
    return {one.name: one for one in fields(kind)}
