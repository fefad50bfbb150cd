"""What commands print: tables and records for people, JSON for programs.

Names are printed as they are: never taken for markup, never cut short. Without a terminal a line
is as long as it has to be, so that `grep` and `awk` see whole rows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

F = TypeVar("F", bound=Callable[..., Any])

UNBOUNDED_COLUMNS = 10_000
"""Width without a terminal: wider than any row."""


def json_option(command: F) -> F:
    """Adds `--json` to a command, as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(
        command
    )


def print_json(value: object, *, indent: int = 2) -> None:
    """Print records, or lists and dictionaries of them, as JSON; `indent` 0 gives one line."""
    import msgspec

    encoded = msgspec.json.encode(value)
    if indent:
        encoded = msgspec.json.format(encoded, indent=indent)
    click.echo(encoded.decode())


def report(value: object, *lines: str, as_json: bool) -> None:
    """What a command has done: the record for programs, or a few lines for people."""
    if as_json:
        print_json(value)
        return
    for line in lines:
        click.echo(line)


def make_console() -> Console:
    """Where tables go: standard output."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else UNBOUNDED_COLUMNS
    return Console(width=width, highlight=False, markup=False, emoji=False)


def make_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table without lines. A column whose title ends in ">" is aligned to the right."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in columns:
        right = title.endswith(">")
        table.add_column(
            title.rstrip(">"), justify="right" if right else "left", overflow="fold", no_wrap=right
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print `make_table`."""
    make_console().print(make_table(columns, rows))


def print_record(fields: Iterable[tuple[str, str]]) -> None:
    """Print one thing, a field on each line."""
    shown = list(fields)
    width = max(len(title) for title, _ in shown)
    for title, value in shown:
        click.echo(f"{title:<{width}}  {value}")


def format_count(number: int | None) -> str:
    """A number that the server may not tell."""
    return "?" if number is None else str(number)


def format_time(seconds: float) -> str:
    """Local time, to the second."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something that cannot be undone; ends the program unless the answer is yes.

    Only a person at a terminal is asked: a script has decided already.
    """
    if yes or not sys.stdin.isatty():
        return
    click.confirm(question, abort=True, err=True)
