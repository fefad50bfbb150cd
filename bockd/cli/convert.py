"""Runs `qemu-img convert` with a progress bar, and ends it when we are ended."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING

from bockd.cli.output import printable
from bockd.diskimage import missing_tool, tool_failure

if TYPE_CHECKING:
    from rich.progress import Progress

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Show = Callable[[int], None] | None
"""Called with the bytes that are done; None without a terminal."""

_PROGRESS = re.compile(rb"\(([0-9.]+)/100%\)")


@contextlib.contextmanager
def ending_signals_interrupt() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt in the body, as SIGINT does, so that the
    program cleans up whichever signal ends it."""
    before = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def ending_signals_held() -> Iterator[None]:
    """Block the signals that would end the program while the body runs."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def convert(arguments: list[str], *, title: str, size_bytes: int) -> None:
    """Run `qemu-img convert` with `arguments`. At a terminal a progress bar of `size_bytes` is
    shown. Raises BockdError with what qemu-img says when it fails. qemu-img never outlives this
    call."""
    with byte_bar(title, size_bytes) as show:
        run_convert(arguments, fraction_of(size_bytes, show))


def run_convert(arguments: list[str], show: Callable[[float], None] | None) -> None:
    """Run `qemu-img convert`, and call `show` with the fraction done. See `convert`."""
    with tempfile.TemporaryFile() as complaints:
        command = ["qemu-img", "convert", *([] if show is None else ["-p"]), *arguments]
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints
            )
        except FileNotFoundError as error:
            raise missing_tool("qemu-img") from error
        with process:
            try:
                follow(process.stdout, show)
                process.wait()
            finally:
                process.kill()
        if process.returncode:
            complaints.seek(0)
            raise tool_failure(complaints.read())


def follow(stdout: IO[bytes] | None, show: Callable[[float], None] | None) -> None:
    """Read qemu-img's progress ("(12.50/100%)", rewritten in place) until it ends."""
    assert stdout is not None
    tail = b""
    while chunk := os.read(stdout.fileno(), 4096):
        tail = (tail + chunk)[-64:]
        percents = _PROGRESS.findall(tail)
        if percents and show is not None:
            show(float(percents[-1]) / 100)


def fraction_of(size_bytes: int, show: Show) -> Callable[[float], None] | None:
    """Return a progress function for fractions of what `show` shows in bytes."""
    return None if show is None else lambda fraction: show(int(fraction * size_bytes))


@contextlib.contextmanager
def byte_bar(title: str, size_bytes: int | None) -> Iterator[Show]:
    """Show a progress bar. Yield a function to call with the bytes done, or None without a
    terminal. A size of None is unknown."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
    )
    with drawn(Progress(*columns, console=Console(stderr=True))) as progress:
        task = progress.add_task(printable(title), total=size_bytes)
        yield lambda done: progress.update(task, completed=done)


@contextlib.contextmanager
def drawn(progress: Progress) -> Iterator[Progress]:
    """Draw progress bars while the body runs, in a thread that takes no signal which would end the
    program: it would not end what the main thread waits for."""
    with ending_signals_held():
        progress.start()  # the thread inherits what is blocked
    try:
        yield progress
    finally:
        progress.stop()
