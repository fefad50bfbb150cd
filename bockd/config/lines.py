"""Where in a TOML document each key stands.

`tomllib` says what a document means but not where, so this walks over the text once more. It only
looks for keys and for where values end; the document has been parsed, and so is known to be well
formed. A key's own text is decoded by `tomllib`, with all its quotes and escapes.

A path is the keys from the top down, with an index for an element of an array of tables:
`("quota", "tenants", "acme", "volumes")`. Keys in inline tables are found too, in other arrays not:
those have the line of the key that the array is given to.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

Path = tuple[str | int, ...]

_STRINGS = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}'  # up to two quotes may stand right before the closing three
    r"|'''.*?'{3,5}"
    r'|"(?:\\.|[^"\\])*"'
    r"|'[^']*'",
    re.DOTALL,
)
_SKIPPED = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY = re.compile(rf"(?:{_STRINGS.pattern}|[A-Za-z0-9_-]+|[ \t]*\.[ \t]*)+", re.DOTALL)
_SCALAR = re.compile(r"[^,\]}\n#]*")


def key_lines(text: str) -> dict[Path, int]:
    """Return the line (from 1) on which each key and each table is first named. `text` must be a
    document that `tomllib` accepts."""
    return _Scanner(text.replace("\r\n", "\n")).scan()


def line_of(lines: dict[Path, int], path: Path) -> int:
    """Return the line of `path`, or of the nearest key or table around it that has one; 1 if none
    has."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


def _decode(key: str) -> tuple[str, ...]:
    """The parts of a key as it is written: `a."b.c"` is `("a", "b.c")`."""
    parts = []
    table = tomllib.loads(f"{key} = 0")
    while isinstance(table, dict):
        ((part, table),) = table.items()
        parts.append(part)
    return tuple(parts)


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1
        self._counted = 0
        self._lines: dict[Path, int] = {}
        self._elements: dict[Path, int] = {}
        """How many elements each array of tables has so far."""

    def scan(self) -> dict[Path, int]:
        table: Path = ()
        while True:
            self._skip()
            if self._at == len(self._text):
                return self._lines
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)

    # -- moving ------------------------------------------------------------------------------

    def _match(self, pattern: re.Pattern[str]) -> str:
        """Move over what matches here."""
        found = pattern.match(self._text, self._at)
        assert found is not None, f"not TOML at {self._at}"
        self._at = found.end()
        return found[0]

    def _skip(self) -> None:
        self._match(_SKIPPED)

    def _take(self, mark: str) -> bool:
        """Move over `mark` if it stands here."""
        if not self._text.startswith(mark, self._at):
            return False
        self._at += len(mark)
        return True

    def _note(self, path: Path, at: int) -> None:
        """`path`, and every table on the way to it, has been named at an offset."""
        self._line += self._text.count("\n", self._counted, at)
        self._counted = at
        for depth in range(1, len(path) + 1):
            self._lines.setdefault(path[:depth], self._line)

    # -- the grammar -------------------------------------------------------------------------

    def _header(self) -> Path:
        """`[a.b]` or `[[a.b]]`."""
        start = self._at
        array = self._take("[[")
        if not array:
            self._at += 1
        self._skip()
        path = self._within(_decode(self._match(_KEY)), new_element=array)
        self._skip()
        self._at += 2 if array else 1
        self._note(path, start)
        return path

    def _within(self, parts: tuple[str, ...], *, new_element: bool) -> Path:
        """The path of a header: what goes through an array of tables means its last element."""
        path: Path = ()
        for number, part in enumerate(parts, 1):
            path = (*path, part)
            if new_element and number == len(parts):
                self._elements[path] = self._elements.get(path, 0) + 1
            if path in self._elements:
                path = (*path, self._elements[path] - 1)
        return path

    def _pair(self, table: Path | None) -> None:
        """`key = value`; `table` is None where keys are not noted."""
        start = self._at
        key = self._match(_KEY)
        path = None if table is None else (*table, *_decode(key))
        if path is not None:
            self._note(path, start)
        self._skip()
        self._at += 1  # the equals sign
        self._skip()
        self._value(path)

    def _value(self, path: Path | None) -> None:
        """A value; if it is an inline table its keys are below `path`."""
        if self._take("{"):
            for _ in self._items("}"):
                self._pair(path)
        elif self._take("["):
            for _ in self._items("]"):
                self._value(None)
        elif self._text[self._at] in "\"'":
            self._match(_STRINGS)
        else:
            self._match(_SCALAR)

    def _items(self, end: str) -> Iterator[None]:
        """Yield at each item, up to the closing `end`."""
        while True:
            self._skip()
            if self._take(end):
                return
            if not self._take(","):
                yield
