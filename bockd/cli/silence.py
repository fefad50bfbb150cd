"""Telling that the daemon does not answer, while the command goes on waiting for it.

Long work is no silence: a flush may take minutes on a slow disk. So it is not judged by how long
the command waits: the daemon is asked for something else, which it answers at once.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import click

from bockd.cli.output import say

PATIENCE_SECONDS: Final = 4.0
"""Between two questions, and for each answer."""

HTTP_QUESTION: Final = b"HEAD / HTTP/1.1\r\nHost: bockd\r\nConnection: close\r\n\r\n"

NBD_QUESTION: Final = b""
"""The server greets first."""


@contextmanager
def telling_silence(path: str, question: bytes) -> Iterator[None]:
    """Name on standard error, while the body runs, that the daemon behind a Unix socket does not
    answer, once each time that it begins."""
    over, context = threading.Event(), click.get_current_context(silent=True)
    program = (context and context.find_root().info_name) or "bock"
    told = f"{program}: the daemon on {path} does not answer; waiting for it"
    watching = threading.Thread(target=_watch, args=(path, question, told, over), daemon=True)
    # It inherits them blocked: the main thread decides when it may be interrupted.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        watching.start()
    except RuntimeError:
        pass  # no more threads: it is a comfort only
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield
    finally:
        over.set()


def _watch(path: str, question: bytes, told: str, over: threading.Event) -> None:
    silent = False
    while not over.wait(PATIENCE_SECONDS):
        answered = answers(path, question)
        if not (answered or silent or over.is_set()):
            with suppress(OSError):  # nobody reads standard error
                say(told, err=True)
        silent = not answered


def answers(path: str, question: bytes) -> bool:
    """Return whether the server behind a socket answers, or there is none any more: who waits for
    it is told of that in another way."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(PATIENCE_SECONDS)
        try:
            asking.connect(path)
            asking.sendall(question)
            asking.recv(1)
        except (TimeoutError, BlockingIOError):  # the latter: too many wait to be let in
            return False
        except OSError:
            return True
    return True
