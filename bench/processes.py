"""Servers and clients as child processes: pinned to a core, ready when they accept, always ended.

Each server is the leader of a process group of its own, so that whatever it starts ends with it.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

READY_SECONDS = 120.0
"""For a server to accept connections. Starting Python takes one second on a slow, busy core; where
memory was short, too, half a minute was not enough."""

STOP_SECONDS = 20.0
"""For a server to end on SIGTERM, before its group is killed: it may have data to flush."""

_READY_POLL_SECONDS = 0.01
_PF_KTHREAD = 0x00200000  # linux/sched.h
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
TICK_SECONDS = 1 / _TICKS_PER_SECOND
"""What processor time is counted in."""


class BenchError(Exception):
    """A benchmark could not run; the message says what to do."""


@dataclass(frozen=True)
class Placement:
    """Which cores servers and clients are pinned to; None leaves it to the kernel."""

    server: int | None
    client: int | None

    def __str__(self) -> str:
        if self.server is None:
            return "nothing pinned"
        return f"servers on core {self.server}, clients on core {self.client}"


def place() -> Placement:
    """Choose one core for servers and another for clients, when there are two."""
    cores = sorted(os.sched_getaffinity(0))
    return Placement(cores[0], cores[1]) if len(cores) > 1 else Placement(None, None)


@contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Pin processes that are started within to the core, with all their threads."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


Address = Path | tuple[str, int]
"""A Unix socket, or a host and a TCP port."""


def free_port() -> int:
    """Find a TCP port of the loopback interface that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def serving(
    command: Sequence[str],
    *,
    address: Address,
    core: int | None,
    log: Path,
    environment: Mapping[str, str] | None = None,
) -> Iterator[int]:
    """Run a server, from the moment it accepts on `address` to the end of the context.

    Yields its process id. Raises BenchError, with the end of its log, when it does not start, or
    when what was done within failed because it had ended.
    """
    with log.open("wb") as output, pinned(core):
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )
    try:
        _wait_until_ready(process, address, log)
        yield process.pid
    except BenchError as error:
        if process.poll() is not None:
            status, tail = process.returncode, _tail(log)
            raise BenchError(f"{error}\n{command[0]} had ended, status {status}:\n{tail}") from None
        raise
    finally:
        _end(process)


@contextmanager
def daemonized(
    command: Sequence[str], *, pid_file: Path, address: Address, core: int | None
) -> Iterator[int]:
    """Run a server as `serving` does that cannot stay in the foreground. It writes `pid_file`."""
    with pinned(core):
        run(command)
    deadline = time.monotonic() + READY_SECONDS
    while not (pid_file.exists() and pid_file.read_text().strip() and _accepts(address)):
        if time.monotonic() > deadline:
            raise BenchError(f"{shlex.join(command)} did not start serving")
        time.sleep(_READY_POLL_SECONDS)
    pid = int(pid_file.read_text())
    try:
        yield pid
    finally:
        os.killpg(pid, signal.SIGTERM)
        while Path(f"/proc/{pid}").exists():
            if time.monotonic() > deadline + STOP_SECONDS:
                os.killpg(pid, signal.SIGKILL)
            time.sleep(_READY_POLL_SECONDS)


def _wait_until_ready(process: subprocess.Popen[bytes], address: Address, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not _accepts(address):
        if process.poll() is not None or time.monotonic() > deadline:
            raise BenchError(f"{process.args!r} did not start serving:\n{_tail(log)}")
        time.sleep(_READY_POLL_SECONDS)


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:] if log.exists() else "(its log is gone)"


def _accepts(address: Address) -> bool:
    with _probe(address) as (probe, where):
        try:
            probe.connect(where)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


@contextmanager
def _probe(address: Address) -> Iterator[tuple[socket.socket, str | tuple[str, int]]]:
    """A socket of the right kind, and what it connects to."""
    if isinstance(address, Path):
        with socket.socket(socket.AF_UNIX) as probe:
            yield probe, str(address)
    else:
        with socket.socket(socket.AF_INET) as probe:
            yield probe, address


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):  # kills what is left of the group, and only that
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> str:
    """Run a tool to its end and return what it prints. Raises BenchError when it fails or is
    missing."""
    try:
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
    except FileNotFoundError:
        raise BenchError(f"{command[0]} is not installed; `make setup` installs it") from None
    if ended.returncode:
        raise BenchError(f"{' '.join(command)} failed:\n{ended.stderr or ended.stdout}")
    return ended.stdout


def cpu_seconds(pid: int) -> float:
    """Sum the processor seconds that a server has used so far: the leader of its session, whoever
    is in that session (some serve each client in a child), and children that have ended."""
    total = 0.0
    for entry in Path("/proc").iterdir():
        fields = _stat_fields(entry)
        if fields and int(fields[3]) == pid:
            ticks = fields[11:15] if entry.name == str(pid) else fields[11:13]
            total += sum(int(field) for field in ticks) / _TICKS_PER_SECOND
    return total


def kernel_cpu_seconds() -> float:
    """Sum the processor seconds that the kernel's own threads have used so far. They write back
    what servers wrote."""
    found = [_stat_fields(entry) for entry in Path("/proc").iterdir()]
    threads = [fields for fields in found if fields and int(fields[6]) & _PF_KTHREAD]
    return sum(int(fields[11]) + int(fields[12]) for fields in threads) / _TICKS_PER_SECOND


def _stat_fields(entry: Path) -> list[str]:
    """The fields of a process's `stat` behind its name, from the state on (proc_pid_stat(5));
    none when it has ended, or for anything else in /proc."""
    if not entry.name.isdigit():
        return []
    try:
        return (entry / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def machine_cpu_seconds() -> float:
    """Sum the seconds that all cores have spent on anything but idling, stolen time included."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / _TICKS_PER_SECOND
