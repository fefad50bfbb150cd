"""Two writers (promise D6): a daemon, the nbdkit plugin and `bockd check --repair`, each with each
of them and with a second one of its own kind, in both orders; all of them real processes.

Who is there first has the volume, or the whole pool, and goes on with it; who comes second gets one
clear error that names what is in the way and who has it, and changes nothing. When the first one
has gone, the second has its turn, and the pool is in order.

    pytest tests/crash/test_two_writers.py -v
"""

from __future__ import annotations

import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbd
import pytest

from tests.daemon.process import Bockd, program
from tests.nbdkit_plugin.conftest import PoolDirectory
from tests.nbdkit_plugin.conftest import pool as pool
from tests.nbdkit_plugin.nbdkit import Nbdkit, refusal

WRITTEN = b"kept" * 1024

CHECK_AND_PAUSE = """
import sys
from bockd.cli.bockd import main
from bockd.drivers.local.integrity import check
real = check._repair
def pausing(*arguments):
    print("in the middle", flush=True)
    sys.stdin.read()
    return real(*arguments)
check._repair = pausing
main(["check", sys.argv[1], "--repair"])
"""
"""The command, which ends too soon to be met, made to wait where it begins to repair."""


class Writer(ABC):
    """One kind of process that may change a pool. `begin` makes it hold the volume "v"."""

    def __init__(self, pool: PoolDirectory, number: int) -> None:
        self.pool = pool
        self.number = number

    @abstractmethod
    def begin(self) -> None: ...

    @abstractmethod
    def proceed(self) -> None:
        """It goes on undisturbed with what it has."""

    @abstractmethod
    def end(self) -> None:
        """It ends well."""

    @abstractmethod
    def refusal(self) -> str:
        """It is to begin, and must not get the volume: what it says."""

    @abstractmethod
    def kill(self) -> None:
        """Nothing of it runs afterwards."""

    @property
    @abstractmethod
    def pid(self) -> int: ...


class Daemon(Writer):
    def __init__(self, pool: PoolDirectory, number: int) -> None:
        super().__init__(pool, number)
        self._daemon = Bockd(pool.path, pool.path.parent / f"daemon-{number}.log")
        self._daemon.expect_in_log("is open in another process")
        self._client: Any = None

    @property
    def pid(self) -> int:
        return self._daemon.pid

    def begin(self) -> None:
        self._daemon.start()
        self._client = self._daemon.connect("v")

    def proceed(self) -> None:
        self._client.pwrite(WRITTEN, 0)
        assert self._client.pread(len(WRITTEN), 0) == WRITTEN

    def end(self) -> None:
        self._client.shutdown()
        self._daemon.stop()

    def kill(self) -> None:
        self._daemon.end()

    def refusal(self) -> str:
        return self._daemon.refusal_to_start()

    def refusal_of_the_volume(self) -> str:
        """It serves the rest of the pool."""
        self._daemon.start()
        with pytest.raises(nbd.Error):
            self._daemon.connect("v")
        said = self._daemon.run("qemu-img", "info", self._daemon.uri("v")).err
        with self._daemon.connected("other") as other:
            other.pwrite(WRITTEN, 0)
        self._daemon.stop()
        return said


class Plugin(Writer):
    _nbdkit: Nbdkit | None = None
    _client: Any

    @property
    def pid(self) -> int:
        assert self._nbdkit is not None
        return self._nbdkit.process.pid

    def begin(self) -> None:
        self._nbdkit = Nbdkit(
            self.pool.path.parent, self.pool.parameter, "volume=v", name=f"nbdkit-{self.number}"
        )
        self._client = self._nbdkit.connect()

    def proceed(self) -> None:
        self._client.pwrite(WRITTEN, 0)
        assert self._client.pread(len(WRITTEN), 0) == WRITTEN

    def end(self) -> None:
        assert self._nbdkit is not None
        self._client.shutdown()
        self._nbdkit.stop()

    def kill(self) -> None:
        if self._nbdkit is not None:
            self._nbdkit.kill()

    def refusal(self) -> str:
        return refusal(self.pool.parameter, "volume=v")


class Repair(Writer):
    _process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def begin(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHECK_AND_PAUSE, self.pool.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "in the middle\n"

    def proceed(self) -> None:
        assert self._process is not None
        assert self._process.poll() is None

    def end(self) -> None:
        assert self._process is not None
        out, _ = self._process.communicate("")
        assert self._process.returncode == 0, out
        assert ": clean; " in out

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def refusal(self) -> str:
        result = self.pool.daemon.run(program("bockd"), "check", self.pool.path, "--repair")
        assert (result.status, result.out) == (1, ""), result
        return result.err


Make = Callable[[PoolDirectory, int], Writer]

WRITERS: dict[str, Make] = {"daemon": Daemon, "nbdkit plugin": Plugin, "check --repair": Repair}

POOL_IN_USE = "is in use by another bockd (process {pid})"
VOLUME_OPEN = "volume 1 is open in another process: use that one's export, or let it close the"
REFUSALS = {
    ("daemon", "daemon"): POOL_IN_USE,
    ("daemon", "nbdkit plugin"): VOLUME_OPEN,
    ("daemon", "check --repair"): POOL_IN_USE + ": stop it before --repair, or check without it",
    ("nbdkit plugin", "daemon"): VOLUME_OPEN,
    ("nbdkit plugin", "nbdkit plugin"): VOLUME_OPEN,
    ("nbdkit plugin", "check --repair"): "end it before --repair, or check without it",
    ("check --repair", "daemon"): POOL_IN_USE,
    ("check --repair", "nbdkit plugin"): "the pool {pool} is being checked: try again when",
    ("check --repair", "check --repair"): POOL_IN_USE + ": stop it before --repair",
}
"""What the second says, by (first, second)."""


def test_the_matrix_is_complete() -> None:
    assert set(REFUSALS) == {(first, second) for first in WRITERS for second in WRITERS}


@pytest.mark.parametrize(("first", "second"), REFUSALS)
def test_the_second_writer_is_refused_until_the_first_has_ended(
    pool: PoolDirectory, first: str, second: str
) -> None:
    pool.create("v")
    pool.create("other")
    holder, comer = WRITERS[first](pool, 1), WRITERS[second](pool, 2)
    try:
        holder.begin()
        holder.proceed()
        assert REFUSALS[first, second].format(pool=pool.path, pid=holder.pid) in refused(
            comer, beside=holder
        )
        holder.proceed()
        holder.end()
        comer.begin()
        comer.proceed()
        comer.end()
    finally:
        holder.kill()
        comer.kill()


def refused(comer: Writer, *, beside: Writer) -> str:
    """What the second says, in one line; nothing is changed, but by a daemon in the rest of the
    pool."""
    if isinstance(beside, Plugin) and isinstance(comer, Daemon):
        return comer.refusal_of_the_volume()
    before = content_of(comer.pool.path / "layers")
    said = comer.refusal().strip()
    assert "\n" not in said, said
    assert content_of(comer.pool.path / "layers") == before
    return said


def content_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}
