"""Programs of ours in processes forked from one that has imported them, for what tests run hundreds
of times.

Such a process calls the program's own entry point, with its arguments, environment, directory,
standard streams and exit status: only the second that Python takes to import everything is saved.
What Python itself reads from the environment has no effect, nor has our umask: tests of these, and
of what a program inherits from its parent, run the program.
"""

from __future__ import annotations

import multiprocessing
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from threading import Lock
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")

PRELOADED = [
    "__main__",
    "tests.forked",
    "tests.crash.forked",
    "tests.corruption.judge",
    "tests.preloaded",
]
"""What is imported by the process that all others are forked from. There is one, which lives as
long as the tests do, and whoever forks first decides what it imports: so everybody uses `fork`. The
last module freezes what there is."""

_starts_and_ends = Lock()
"""Whoever starts a process asks multiprocessing how all others are, and two must not read an exit
status at a time."""


def fork(target: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """Run a function in a new process, whose parent has imported both programs."""
    CONTEXT.set_forkserver_preload(PRELOADED)
    process = CONTEXT.Process(target=target, args=arguments, daemon=True)
    with _starts_and_ends:
        process.start()
    return process


def status_of(process: ForkServerProcess) -> int:
    """Wait until a process ends, and return its exit status, which is negative for a signal."""
    wait([process.sentinel])
    with _starts_and_ends:
        process.join()
    assert process.exitcode is not None
    return process.exitcode


def run(
    name: str,
    arguments: Sequence[str | Path],
    environment: Mapping[str, str],
    patience_seconds: float,
) -> tuple[int, str, str]:
    """Run `bock` or `bockd` to its end; returns its exit status, and what it prints to standard
    output and standard error. Raises TimeoutError, and ends it, after `patience_seconds`."""
    out, its_out = CONTEXT.Pipe(duplex=False)
    err, its_err = CONTEXT.Pipe(duplex=False)
    with out, err:
        with its_out, its_err:
            words = [str(each) for each in arguments]
            process = fork(_run, name, words, dict(environment), os.getcwd(), its_out, its_err)
        try:
            printed, complained = _read_to_end((out, err), time.monotonic() + patience_seconds)
        except TimeoutError:
            process.kill()
            raise
    return status_of(process), printed, complained


class Program:
    """A program that its test ends, with the part of subprocess.Popen that `Bockd` uses."""

    def __init__(
        self, name: str, arguments: Sequence[str | Path], environment: Mapping[str, str], log: Path
    ) -> None:
        """Start it; what it writes to standard error is added to `log`."""
        self.stdout, its_out = CONTEXT.Pipe(duplex=False)
        its_err = Connection(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
        with its_out, its_err:
            words = [str(each) for each in arguments]
            self._process = fork(
                _run, name, words, dict(environment), os.getcwd(), its_out, its_err
            )

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        with _starts_and_ends:
            if self._process.is_alive():
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it ends; its status, negative for a signal. Raises TimeoutExpired."""
        if not wait([self._process.sentinel], timeout):
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        return status_of(self._process)


def _read_to_end(pipes: Sequence[Connection], deadline: float) -> list[str]:
    """What each of the pipes brings, with ends of lines as subprocess's `text` has them."""
    texts = {pipe.fileno(): b"" for pipe in pipes}
    with selectors.DefaultSelector() as selector:
        for descriptor in texts:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"it hangs, after {texts}")
            for key, _ in ready:
                data = os.read(key.fd, 65536)
                texts[key.fd] += data
                if not data:
                    selector.unregister(key.fd)
    return [text.decode().replace("\r\n", "\n").replace("\r", "\n") for text in texts.values()]


def _run(
    name: str,
    arguments: list[str],
    environment: Mapping[str, str],
    directory: str,
    out: Connection,
    err: Connection,
) -> None:
    """In the new process: become the program."""
    os.chdir(directory)
    become(environment, out.fileno(), err.fileno())
    out.close()
    err.close()
    sys.argv = [str(Path(sys.executable).with_name(name)), *arguments]
    import_module(f"bockd.cli.{name}").main()


def become(environment: Mapping[str, str], out: int, err: int) -> None:
    """Take an environment and standard streams. Standard input is /dev/null: so begins each of
    multiprocessing's processes."""
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(out, 1)
    os.dup2(err, 2)
    # Those of the process that this one was forked from believe that they can seek.
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
