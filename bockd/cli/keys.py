"""Keys that are pressed at a terminal while a command shows something there.

Meanwhile the terminal gives each key at once and does not show it; keys make signals (Ctrl-C,
Ctrl-Z) as always. However the command ends or is stopped, the terminal gets its mode back: at the
end, before it is stopped, and before a signal kills it. In the background the terminal is the
shell's, and no key is ours.
"""

from __future__ import annotations

import copy
import errno
import os
import re
import select
import signal
import termios
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

_LOCAL, _CHARACTERS = 3, 6
"""Where `termios.tcgetattr` has the local modes and the special characters."""

_SHOW_CURSOR, _HIDE_CURSOR = b"\x1b[?25h", b"\x1b[?25l"

_PASSED_ON = (signal.SIGTSTP, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)
"""What stops or kills us. SIGINT is the caller's: it is no end but an exception."""

_SEQUENCE = re.compile(rb"\x1b[\[O]([0-9;]*)([A-Za-z~])|\x1b[\[O]?[0-9;]*\Z|[^\x1b]|\x1b")
"""A key: as ECMA-48 writes it (section 5.4), the beginning of such a one, or a character."""

_NAMES: Final = {
    b"A": "up",
    b"B": "down",
    b"C": "right",
    b"D": "left",
    b"H": "home",
    b"F": "end",
    b"1~": "home",
    b"4~": "end",
    b"5~": "page up",
    b"6~": "page down",
    b"7~": "home",
    b"8~": "end",
}
"""What terminals send for the keys that have no character."""


def parse_keys(received: bytes) -> tuple[list[str], bytes]:
    """Return the keys in what a terminal has sent, and the beginning of one that is not complete.
    A key is a character or one of the names "up", "page down" and so on; others are left out."""
    keys: list[str] = []
    for found in _SEQUENCE.finditer(received):
        text = found[0]
        if found[2] is not None:
            numbers, final = found[1], found[2]
            # With Shift or Ctrl, 1;2A is A.
            name = numbers.partition(b";")[0] + final if final == b"~" else final
            if name in _NAMES:
                keys.append(_NAMES[name])
        elif text.startswith(b"\x1b"):
            if found.end() == len(received):
                return keys, text
        elif text.isascii() and text.decode().isprintable():
            keys.append(text.decode())
    return keys, b""


class Keyboard:
    """What is typed at one terminal. Use `keyboard` to make it."""

    def __init__(self, terminal: int, screen: int) -> None:
        """Descriptors of the terminal where keys come from, and of the one with the cursor."""
        self._terminal = terminal
        self._screen = screen
        self._keys: deque[str] = deque()
        self._begun = b""
        self._usual: list[Any] | None = None
        """The terminal's mode before, while it has ours."""

    def wait(self, seconds: float) -> str | None:
        """Return the next key that is pressed; None if none is within so many seconds."""
        until = time.monotonic() + seconds
        while not self._keys:
            left = max(0.0, until - time.monotonic())
            if not self._is_ours() or not self._read(left):
                time.sleep(max(0.0, until - time.monotonic()))
                return None
            if not self._keys and time.monotonic() >= until:
                return None
        return self._keys.popleft()

    def _read(self, seconds: float) -> bool:
        """Take what has been typed. Return whether more may come: not if the terminal is gone."""
        if not select.select([self._terminal], [], [], seconds)[0] or not self._is_ours():
            return True
        try:
            received = os.read(self._terminal, 1024)
        except OSError:
            return False
        keys, self._begun = parse_keys(self._begun + received)
        self._keys.extend(keys)
        return bool(received)

    def _is_ours(self) -> bool:
        """Whether we are in the foreground, or there is none: it is not the terminal of our
        session."""
        try:
            return os.tcgetpgrp(self._terminal) == os.getpgrp()
        except OSError as error:
            return error.errno == errno.ENOTTY and os.isatty(self._terminal)

    def take(self) -> None:
        """Have keys come at once and unseen; nothing in the background."""
        if self._usual is not None or not self._is_ours():
            return
        self._usual = termios.tcgetattr(self._terminal)
        mode = copy.deepcopy(self._usual)
        mode[_LOCAL] &= ~(termios.ECHO | termios.ICANON)
        mode[_CHARACTERS][termios.VMIN], mode[_CHARACTERS][termios.VTIME] = 1, 0
        termios.tcsetattr(self._terminal, termios.TCSADRAIN, mode)

    def give_back(self) -> None:
        """Restore the terminal's mode. In the background the shell has done that: who tried would
        be stopped."""
        usual, self._usual = self._usual, None
        if usual is not None and self._is_ours():
            termios.tcsetattr(self._terminal, termios.TCSADRAIN, usual)

    def pass_on(self, number: int, _frame: FrameType | None) -> None:
        """Do what a signal does by itself, with the terminal as it was."""
        os.write(self._screen, _SHOW_CURSOR)
        self.give_back()
        ours = signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        # Only who was stopped comes here, when it is continued.
        signal.signal(number, ours)
        self.continued(number, None)

    def continued(self, _number: int, _frame: FrameType | None) -> None:
        """Take the terminal again, after it was the shell's."""
        self.take()
        if self._usual is not None:
            os.write(self._screen, _HIDE_CURSOR)


@contextmanager
def keyboard(terminal: int, screen: int) -> Iterator[Keyboard]:
    """Yield what is typed at a terminal; after it, that is as it was."""
    keys = Keyboard(terminal, screen)
    handlers: dict[signal.Signals, Callable[[int, FrameType | None], None]]
    handlers = dict.fromkeys(_PASSED_ON, keys.pass_on) | {signal.SIGCONT: keys.continued}
    before = {}
    try:
        for number, handler in handlers.items():
            before[number] = signal.signal(number, handler)
        keys.take()
        yield keys
    finally:
        # Until this is done a second Ctrl-C has to wait.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, *handlers))
        keys.give_back()
        for number, found in before.items():
            signal.signal(number, found)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
