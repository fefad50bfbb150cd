"""The tables of the index. Each room declares its own beside the codec of their keys and values."""

from __future__ import annotations

import zlib
from typing import final

_declared: dict[bytes, Table] = {}


@final
class Table:
    """A table, declared when it is made. Raises ValueError for a name that is taken."""

    __slots__ = ("name", "seed")

    def __init__(self, name: bytes) -> None:
        if name in _declared:
            raise ValueError(f"table {name.decode()} is declared twice")
        self.name = name
        self.seed = zlib.crc32(name)
        """What the checksums of the table's values begin with."""
        _declared[name] = self

    def __repr__(self) -> str:
        return f"Table({self.name!r})"

    def __str__(self) -> str:
        return self.name.decode()


def stand_in(name: bytes) -> Table:
    """Return an undeclared table of that name, for who keeps copies of tables that this process
    may not know."""
    table = object.__new__(Table)
    table.name = name
    table.seed = zlib.crc32(name)
    return table


def declared_tables() -> dict[bytes, Table]:
    """Return all tables by name, in the order of declaration."""
    return dict(_declared)
