"""What commands print: tables and records for people, JSON for programs.

Names are never taken for markup and never cut short, and no name makes a command fail: JSON is
ASCII, and elsewhere what cannot be shown is replaced (`printable`). A figure is never cut or
folded: on a narrow terminal long names take several lines, down to `MIN_TEXT_COLUMNS`, and after
that lines are longer than the terminal. Without a terminal a line is as long as it has to be, so
that `grep` and `awk` see whole rows.

Commands print through this module alone, but for documents, such as a unit file
(`tests/cli/test_names.py`).
"""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self, TypeVar

import click

from bockd.oneline import one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

F = TypeVar("F", bound=Callable[..., Any])

UNBOUNDED_COLUMNS = 10_000
"""Width without a terminal: wider than any row."""

MIN_TEXT_COLUMNS = 12
"""A name that is folded to less cannot be read."""

GAP = 2
"""Columns between two cells."""


def json_option(command: F) -> F:
    """Add the option `--json` to a command, as its argument `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(
        command
    )


def print_json(value: object, *, indent: int = 2) -> None:
    """Print records, or lists and dictionaries of them, as JSON; `indent` 0 gives one line.

    In ASCII, so that it is the same document in every locale; and file names may hold bytes that
    are no text, which UTF-8 cannot carry.
    """
    import json

    import msgspec

    plain = msgspec.to_builtins(value)
    separators = (",", ": ") if indent else (",", ":")
    click.echo(json.dumps(plain, indent=indent or None, separators=separators))


def printable(text: str) -> str:
    """Return text for one line of the terminal: control characters and what is no text escaped,
    and "?" for what its character set does not have."""
    if text.isascii() and text.isprintable():
        return text
    encoding = sys.stdout.encoding or "utf-8"
    return one_line(text).encode(encoding, "replace").decode(encoding)


def never_fail_to_print() -> None:
    """Have standard output and standard error replace what they cannot encode.

    A name may hold any character, whatever the locale is; a path any bytes.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str = "", *, err: bool = False) -> None:
    """Print a line for people. Names and paths in it may hold anything."""
    click.echo(printable(text), err=err)


def report(value: object, *lines: str, as_json: bool) -> None:
    """Print what a command has done: the record for programs, or a few lines for people."""
    if as_json:
        print_json(value)
        return
    for line in lines:
        say(line)


def make_console() -> Console:
    """Make the console on standard output, for tables that must be folded or redrawn."""
    from rich.console import Console

    # A terminal is asked each time: it may be resized.
    width = None if sys.stdout.isatty() else UNBOUNDED_COLUMNS
    return Console(width=width, highlight=False, markup=False, emoji=False)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table, from its title: one that ends in ">" is aligned to the right, and its
    cells are never folded, nor are those of one that ends in "="."""

    title: str
    right: bool
    whole: bool
    widest: int
    """Of its cells and its title, in columns of the terminal."""

    @classmethod
    def of(cls, title: str, cells: Iterable[str]) -> Self:
        """Make a column from a title as it is written in the code, and the cells below it."""
        from rich.cells import cell_len

        shown = title.rstrip(">=")
        widest = max(map(cell_len, (shown, *cells)))
        return cls(shown, title.endswith(">"), title.endswith((">", "=")), widest)

    @property
    def least(self) -> int:
        """The width that it needs at least."""
        return self.widest if self.whole else min(self.widest, MIN_TEXT_COLUMNS)

    def padded(self, cell: str) -> str:
        """Pad a cell to the width of the column."""
        from rich.cells import cell_len

        missing = " " * (self.widest - cell_len(cell))
        return missing + cell if self.right else cell + missing


def make_columns(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[Column]:
    """Make the columns of a table; see `Column` for their titles."""
    return [Column.of(title, (row[number] for row in rows)) for number, title in enumerate(titles)]


def make_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> Table:
    """Make a table without lines, whose text is folded where it must be."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            overflow="fold",
            no_wrap=column.whole,
            min_width=column.least,
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; see `Column` for the titles."""
    rows = [[printable(cell) for cell in row] for row in rows]
    columns = make_columns(titles, rows)
    gaps = GAP * (len(columns) - 1)
    if sum(column.widest for column in columns) + gaps <= terminal_columns():
        click.secho(_line(columns, [column.title for column in columns]), bold=True)
        for row in rows:
            click.echo(_line(columns, row))
        return
    console = make_console()
    console.width = max(console.width, sum(column.least for column in columns) + gaps)
    console.print(make_table(columns, rows))


def _line(columns: Sequence[Column], cells: Sequence[str]) -> str:
    padded = (column.padded(cell) for column, cell in zip(columns, cells, strict=True))
    return (" " * GAP).join(padded).rstrip()


def terminal_columns() -> int:
    """Return how long a line may be, in columns."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else UNBOUNDED_COLUMNS


def print_record(fields: Iterable[tuple[str, str]]) -> None:
    """Print one thing, a field on each line."""
    shown = [(printable(title), printable(value)) for title, value in fields]
    width = max(len(title) for title, _ in shown)
    for title, value in shown:
        click.echo(f"{title:<{width}}  {value}")


def format_count(number: int | None) -> str:
    """Format a number that the server may not tell."""
    return "?" if number is None else str(number)


def format_time(seconds: float) -> str:
    """Format a time (seconds since the epoch) as local time, to the second."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")
