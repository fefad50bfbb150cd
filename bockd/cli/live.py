"""A table that is redrawn in place at a terminal, and that obeys keys when somebody types there.

What is shown, the *view*, follows from the keys alone; what it makes of the rows is a function. Who
has no keyboard sees all rows in their order, or those that are chosen when there are too many.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from bockd.cli.keys import Keyboard, keyboard
from bockd.cli.output import make_columns, make_console, make_table

if TYPE_CHECKING:
    from rich.console import RenderableType

R = TypeVar("R")

OTHER_LINES = 3
"""Of the terminal's height: titles, what is said below the table, and the cursor."""

HELP = (
    ("q", "end"),
    ("space", "stand still, and go on"),
    ("left, right", "sort by another column"),
    ("r", "reverse the order"),
    ("up, down, page up, page down, home, end", "move through the rows"),
    ("?", "show this, and the table again"),
)

_MOVES = {"up": -1, "down": 1}


@dataclass(frozen=True, slots=True)
class Sheet(Generic[R]):
    """How rows become a table."""

    titles: Sequence[str]
    """Of all columns, in their order; see bockd.cli.output.Column."""
    cells: Callable[[R], Sequence[str]]
    value: Callable[[R, int], Any]
    """By what rows are sorted, of a column. Those of text come from the beginning of the alphabet
    on, figures from the largest on."""
    fit: Callable[[Sequence[Sequence[str]], int], tuple[Sequence[str], Sequence[Sequence[str]]]]
    """The titles of the columns that fit a width, and their cells."""
    choose: Callable[[list[R], int], list[R]]
    """Which rows are shown if they are too many and nobody has said which."""


@dataclass(frozen=True, slots=True)
class View:
    """What somebody wants to see."""

    by: str | None = None
    """The title of the column by which rows are sorted; None: in the order in which they come."""
    reverse: bool = False
    first: int = 0
    """How many rows are above those that are shown."""
    paused: bool = False
    helping: bool = False
    over: bool = False

    def after(self, key: str, titles: Sequence[str], rows: int, room: int) -> View:
        """Return the view after a key. `titles` are those that are shown, `room` is how many of the
        `rows` are."""
        match key:
            case "q":
                return replace(self, over=True)
            case "?":
                return replace(self, helping=not self.helping)
            case " ":
                return replace(self, paused=not self.paused)
            case "r":
                return replace(self, reverse=not self.reverse)
            case "left" | "right":
                return replace(self, by=self._beside(titles, 1 if key == "right" else -1), first=0)
        last = max(0, rows - room)
        moves = {**_MOVES, "page up": -room, "page down": room, "home": -rows, "end": rows}
        first = min(self.first, last) + moves.get(key, 0)
        return replace(self, first=min(max(first, 0), last))

    def _beside(self, titles: Sequence[str], step: int) -> str | None:
        choices = [None, *titles]
        now = choices.index(self.by) if self.by in choices else 0
        return choices[(now + step) % len(choices)]


def arrange(sheet: Sheet[R], rows: list[R], view: View, room: int) -> list[R]:
    """Return the rows that are shown, `room` at most, in their order."""
    if view.by is not None:
        number, by_text = list(sheet.titles).index(view.by), not view.by.endswith(">")
        down = view.reverse if by_text else not view.reverse
        rows = sorted(rows, key=lambda row: sheet.value(row, number), reverse=down)
    elif view.reverse:
        rows = rows[::-1]
    elif not view.first:
        return sheet.choose(rows, room)
    first = max(0, min(view.first, len(rows) - room))
    return rows[first : first + room]


class LiveTable(Generic[R]):
    """See the module's docstring."""

    def __init__(self, sheet: Sheet[R], keys: Keyboard | None) -> None:
        """`keys` is None where nobody types."""
        self._sheet = sheet
        self._keys = keys
        self._view = View()
        self._console = make_console()
        self._latest: list[R] | None = None
        """None: nothing has come yet."""
        self._rows: list[R] = []
        """What is shown of; older than the latest while the view is paused."""
        self._update: Callable[[RenderableType], None]

    def wait(self, seconds: float) -> bool:
        """Obey keys for so many seconds. Return whether to go on."""
        if self._keys is None:
            time.sleep(seconds)
            return True
        until = time.monotonic() + seconds
        while not self._view.over:
            key = self._keys.wait(max(0.0, until - time.monotonic()))
            if key is None:
                return True
            self._press(key)
        return False

    def _press(self, key: str) -> None:
        if self._latest is None:
            self._view = replace(self._view, over=key == "q")
            return
        _, titles, _ = self._fitted()
        self._view = self._view.after(key, titles, len(self._rows), self._room())
        self._draw()

    def show_all(self, observed: Iterator[list[R]]) -> None:
        """Show what comes until it ends."""
        from rich.live import Live

        with Live(console=self._console, auto_refresh=False) as live:
            self._update = lambda shown: live.update(shown, refresh=True)
            for rows in observed:
                self._latest = rows
                self._draw()

    def _fitted(self) -> tuple[int, Sequence[str], Sequence[Sequence[str]]]:
        """Return how many rows are shown, the titles, and the cells."""
        shown = arrange(self._sheet, self._rows, self._view, self._room())
        cells = [self._sheet.cells(row) for row in shown]
        return len(shown), *self._sheet.fit(cells, self._console.width)

    def _room(self) -> int:
        return max(1, self._console.height - OTHER_LINES)

    def _draw(self) -> None:
        from rich.console import Group
        from rich.text import Text

        if self._latest is not None and not self._view.paused:
            self._rows = self._latest
        if self._view.helping:
            self._update(make_table(make_columns(("KEY=", "WHAT IT DOES"), HELP), HELP))
            return
        shown, titles, cells = self._fitted()
        table = make_table(make_columns(titles, cells), cells)
        said = self._said(shown)
        self._update(Group(table, *([Text(said, style="dim")] if said else [])))

    def _said(self, shown: int) -> str:
        """What stands below the table."""
        view, rows = self._view, len(self._rows)
        parts = []
        if shown < rows:
            chosen = view.by is None and not view.reverse and not view.first
            first = max(0, min(view.first, rows - shown))
            parts.append(
                f"and {rows - shown} with fewer requests"
                if chosen
                else f"{first + 1} to {first + shown} of {rows}"
            )
        if self._keys is None:
            return ", ".join(parts)
        if view.by is not None:
            parts.append(f"by {view.by.rstrip('=>')}{', reversed' if view.reverse else ''}")
        elif view.reverse:
            parts.append("reversed")
        if view.paused:
            parts.append("standing still")
        return "; ".join([*parts, "? shows the keys"])


def show_live(
    sheet: Sheet[R], observe: Callable[[Callable[[float], bool]], Iterator[list[R]]]
) -> None:
    """Show what `observe` yields, which is given what to call between two looks: it waits for so
    many seconds, and returns whether to go on."""
    with ExitStack() as stack:
        typed = sys.stdin is not None and sys.stdin.isatty()
        screen = sys.stdout.fileno()
        keys = stack.enter_context(keyboard(sys.stdin.fileno(), screen)) if typed else None
        table = LiveTable(sheet, keys)
        table.show_all(observe(table.wait))
