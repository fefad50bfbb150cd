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
        """Yield what is wrong with keys that are each valid alone: the key, as it is written from
        this section on ("nbd.tls"), and the reason."""
        yield from ()


def key(default: T, read: Callable[[object], U]) -> T | U:
    """Declare a key with one value. `read` checks and converts what TOML had."""
    # To the type checker this is the field's default, which is what it is.
    return field(default=default, metadata={READ: read})


def section(kind: type[S]) -> S:
    """Declare a nested table, `[name]`. If it is left out, its keys have their defaults."""
    return field(default_factory=kind, metadata={SECTION: kind})


def named(value: type[T] | Callable[[object], T]) -> Mapping[str, T]:
    """Declare a table whose keys the user chooses. All its values are of one kind: a `Section`, or
    one value."""
    return field(default_factory=dict, metadata={NAMED: value})


def section_fields(kind: type[Section]) -> dict[str, Field[Any]]:
    """Return the fields of a section by name."""
    return {one.name: one for one in fields(kind)}
