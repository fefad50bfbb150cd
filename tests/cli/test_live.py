"""The live table of `bock stat`: what keys do, and that the terminal is afterwards as it was."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from bockd.cli.keys import parse_keys
from bockd.cli.live import Sheet, View, arrange

from .daemon import Daemon, Terminal

SHEET: Sheet[tuple[int, str]] = Sheet(
    ("ID>", "NAME"),
    lambda row: (str(row[0]), row[1]),
    lambda row, column: row[column],
    lambda cells, _: (("ID>", "NAME"), cells),
    lambda rows, most: rows[-most:],
)
ROWS = [(1, "c"), (2, "a"), (3, "b"), (4, "d")]


@pytest.mark.parametrize(
    ("received", "keys"),
    [
        (b"q", ["q"]),
        (b"\x1b[A\x1b[B\x1bOC\x1bOD", ["up", "down", "right", "left"]),
        (b"\x1b[5~\x1b[6~\x1b[H\x1b[4~", ["page up", "page down", "home", "end"]),
        (b"\x1b[1;5C\x1b[15~\x1b[Z?", ["right", "?"]),  # with Ctrl; F5 and Shift-Tab are nothing
        (b"\x1bq \r\n\x00\x7f", ["q", " "]),
        ("\xe4r".encode(), ["r"]),
    ],
)
def test_keys_are_what_terminals_send(received: bytes, keys: list[str]) -> None:
    assert parse_keys(received) == (keys, b"")
    # In whatever pieces.
    found, begun = [], b""
    for byte in received:
        more, begun = parse_keys(begun + bytes([byte]))
        found += more
    assert (found, begun) == (keys, b"")


def test_keys_change_the_view() -> None:
    def after(*keys: str) -> View:
        view = View()
        for key in keys:
            view = view.after(key, ("ID>", "NAME"), rows=100, room=10)
        return view

    assert after("q").over
    assert after("?") == View(helping=True)
    assert after("?", "?") == after(" ", " ") == after("x", "r", "r") == View()
    assert after(" ") == View(paused=True)
    assert [after(*["right"] * many).by for many in range(4)] == [None, "ID>", "NAME", None]
    assert after("left") == View(by="NAME")
    assert after("down", "left").first == 0
    assert [after(*keys).first for keys in (["down"], ["up"], ["page down", "up"])] == [1, 0, 9]
    assert [after(*keys).first for keys in (["end"], ["end", "down"], ["end", "home"])] == [
        90,
        90,
        0,
    ]


def test_rows_are_sorted_and_scrolled() -> None:
    assert arrange(SHEET, ROWS, View(), 2) == ROWS[2:]  # chosen, because they are too many
    assert arrange(SHEET, ROWS, View(first=1), 2) == ROWS[1:3]
    assert arrange(SHEET, ROWS, View(first=9), 3) == ROWS[1:]
    assert arrange(SHEET, ROWS, View(reverse=True), 4) == ROWS[::-1]
    # Figures from the largest on, text from A on.
    assert [one for one, _ in arrange(SHEET, ROWS, View(by="ID>"), 9)] == [4, 3, 2, 1]
    assert [one for _, one in arrange(SHEET, ROWS, View(by="NAME"), 9)] == ["a", "b", "c", "d"]
    upside_down = arrange(SHEET, ROWS, View(by="NAME", reverse=True, first=1), 2)
    assert [one for _, one in upside_down] == ["c", "b"]


SHOWN = "? shows the keys"


@pytest.fixture(scope="module")
def watched(daemon: Daemon) -> Iterator[Daemon]:
    """A daemon with two volumes."""
    names = ("watched-1", "watched-2")
    for name in names:
        daemon.bock("volume", "create", name, "--size", "1M")
    yield daemon
    for name in names:
        daemon.bock("volume", "delete", name)


def press(live: Terminal, key: str, shows: str) -> None:
    """Press a key, after which something is to be seen."""
    live.seen = ""
    live.type(key)
    live.wait_for(shows)


STAT = ("bock", "stat", "--interval", "0.1")


def test_keys_sort_pause_help_and_end(watched: Daemon) -> None:
    live = Terminal(watched, *STAT, rows=1000)
    live.wait_for(SHOWN)
    assert not live.echoes
    press(live, "\x1b[C", "by ID")
    press(live, "r", "by ID, reversed")
    press(live, "\x1b[C", "by NAME, reversed")
    press(live, " ", "standing still")
    press(live, "?", "sort by another column")
    press(live, "?", "standing still")
    watched.bock("volume", "create", "later", "--size", "1M")
    assert "later" not in live.seen
    press(live, " ", "later")
    live.type("q")
    assert live.end() == 0
    watched.bock("volume", "delete", "later")


def test_few_rows_are_moved_through(watched: Daemon) -> None:
    live = Terminal(watched, *STAT, rows=4)  # one row of the table
    live.wait_for("with fewer requests")
    press(live, "\x1b[F", f"{(volumes := len(watched.names()))} to {volumes} of {volumes}")
    press(live, "\x1b[H", "with fewer requests")
    live.type("q")
    assert live.end() == 0


@pytest.mark.parametrize("how", ["q", "\x03", "TERM"])
def test_the_terminal_is_as_it_was(watched: Daemon, how: str) -> None:
    start = f"sh -c 'echo $$; exec {' '.join(STAT)}'"
    command = f"trap : INT; stty -g; {start}; echo ended with $?; stty -g"
    live = Terminal(watched, "sh", "-c", command, rows=1000, controls=True)
    live.wait_for(SHOWN)
    before, process = live.seen.split()[:2]
    assert not live.echoes
    if how == "TERM":
        os.kill(int(process), signal.SIGTERM)
    else:
        live.type(how)
    live.wait_for("ended with")
    assert live.end() == 0
    said = live.seen.rpartition("ended with")[2].split()
    assert said == ["143" if how == "TERM" else "0", before]
    assert live.seen.rindex("\x1b[?25h") > live.seen.rindex("\x1b[?25l")  # the cursor is there


def test_a_stopped_one_leaves_the_terminal_to_the_shell(watched: Daemon) -> None:
    shell = Terminal(watched, "dash", "-i", rows=1000, controls=True, PS1="$ ", ENV="")
    shell.wait_for("$ ")
    shell.type(" ".join(STAT) + "\n")
    shell.wait_for(SHOWN)
    assert not shell.echoes
    press(shell, "\x1a", "$ ")
    assert shell.echoes
    press(shell, "bg\n", "watched-1")
    assert shell.echoes
    press(shell, "fg\n", SHOWN)
    press(shell, "\x1b[C", "by ID")
    press(shell, "q", "$ ")
    assert shell.echoes
    shell.type("exit\n")
    assert shell.end() == 0


def test_without_a_keyboard_it_is_as_without_keys(watched: Daemon) -> None:
    live = Terminal(watched, "sh", "-c", f"exec {' '.join(STAT)} < /dev/null", rows=1000)
    for _ in range(3):
        live.wait_for("watched-2")
        live.seen = ""
    assert live.echoes
    live.type("?q")
    live.wait_for("watched-2")
    live.signal(signal.SIGINT)
    assert live.end() == 0
    assert SHOWN not in live.seen
