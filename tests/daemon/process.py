"""`bockd serve` as a process of its own, which a test may start, kill and start again.

Tests that need a running daemon share this. What the daemon writes to its log is kept: a line that
is not mere information fails the test, unless the test said that it expects it.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import nbd

from bockd import failpoints
from bockd.cli.client import ControlClient
from bockd.cli.storage import StorageClient
from bockd.config.load import load
from tests import forked
from tests.daemon.driver import configured

READY_SECONDS = 120.0
"""A start takes about a second; the machine may be busy with other tests."""

ABOUT_THE_MACHINE = r"^WARNING bockd\.daemon\.capacity: the (file system of |room of the Ceph )"
"""What the daemon says of a file system that is rather full, which the tests' may be; and of a Ceph
cluster without a manager, which the tests' is."""

PROGRAM_SECONDS = 240.0
"""No program that a test runs takes this long, unless it hangs."""


@dataclass(frozen=True)
class Result:
    """How a program ended."""

    status: int
    out: str
    err: str


def _as_text(line: str) -> str:
    """Return a line of a daemon's log as format "text" has it, also where its format is "json"."""
    if not line.startswith("{"):
        return line
    said = json.loads(line)
    return f"{said['level'].upper()} {said['logger']}: {said['message']}"


class Bockd:
    """A data directory, and the daemon that serves it while it runs."""

    def __init__(
        self,
        data_dir: Path,
        log: Path,
        *,
        nbd_listen: str = "none",
        api_listen: str = "none",
        metrics_listen: str = "none",
        mount: Path | None = None,
        config: Path = Path("/dev/null"),
        launcher: Sequence[str | Path] = (),
        is_forked: bool = True,
    ) -> None:
        self.data_dir = data_dir
        self.log = log
        self.announced: list[str] = []
        self._nbd_listen = nbd_listen
        self._options = [] if mount is None else ["--mount", str(mount)]
        self._api_listen = api_listen
        self._metrics_listen = metrics_listen
        self._config = config
        self._launcher = launcher
        self._is_forked = is_forked
        self._failpoint: str | None = None
        self._process: subprocess.Popen[bytes] | forked.Program | None = None
        self._expected: list[str] = []

    # -- the process -------------------------------------------------------------------------

    def dies_at(self, failpoint: str | None) -> None:
        """From the next start on, it dies at `NAME` or `NAME:HITS`. None: at none."""
        self._failpoint = failpoint

    def start(self) -> Self:
        """Start it and wait until it says that it is ready; AssertionError with its log."""
        assert self._process is None
        self._process = self._started()
        self.announced = []
        deadline = time.monotonic() + READY_SECONDS
        for line in lines_of(self._process, deadline):
            self.announced.append(line)
            if line.startswith("Next: "):
                return self
        self._forget()
        raise AssertionError(f"the daemon did not get ready:\n{self.log.read_text()}")

    def _started(self) -> subprocess.Popen[bytes] | forked.Program:
        environment = self.environment
        if self._failpoint is not None:
            environment[failpoints.VARIABLE] = self._failpoint
        if self._is_forked and not self._launcher:
            return forked.Program("bockd", ["serve", *self._options], environment, self.log)
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*self._launcher, program("bockd"), "serve", *self._options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
            )

    def refusal_to_start(self) -> str:
        """Start it where it must refuse: status 1 and one line, which is returned."""
        result = self.run(*self._launcher, program("bockd"), "serve", *self._options)
        assert (result.status, result.out) == (1, ""), result
        assert result.err.startswith("bockd: "), result
        assert result.err.count("\n") == 1, result
        return result.err.strip()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        assert self._process is not None
        self._process.kill()
        self._forget()

    def stop(self) -> None:
        """SIGTERM; it must end well, and have logged nothing that was not expected."""
        self.stop_by(signal.SIGTERM)

    def stop_by(self, number: signal.Signals) -> None:
        """Like `stop`, by another signal."""
        status = self.status_of_stop_by(number)
        assert status == 0, f"the daemon ended with status {status}:\n{self.log.read_text()}"

    def status_of_stop_by(self, number: signal.Signals) -> int:
        """End it by a signal; it must have logged nothing that was not expected."""
        assert self._process is not None
        self._process.send_signal(number)
        status = self._forget()
        self._check_log()
        return status

    def restart(self) -> None:
        """Stop it cleanly and start it again."""
        self.stop()
        self.start()

    def end(self) -> None:
        """Whatever happened: nothing runs afterwards."""
        if self._process is not None:
            self._process.kill()
            self._forget()

    @property
    def running(self) -> bool:
        return self._process is not None

    def _forget(self) -> int:
        assert self._process is not None
        process, self._process = self._process, None
        assert process.stdout is not None
        try:
            return process.wait(READY_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            process.stdout.close()

    # -- its log -----------------------------------------------------------------------------

    def expect_in_log(self, pattern: str) -> None:
        """From now on lines that contain `pattern`, a regular expression, are as they should be."""
        self._expected.append(pattern)

    def _check_log(self) -> None:
        for line in self.log.read_text().splitlines():
            text = _as_text(line)
            known = re.search(ABOUT_THE_MACHINE, text) or any(
                re.search(pattern, line) for pattern in self._expected
            )
            assert known or text.startswith("INFO "), f"in the daemon's log: {line}"

    # -- programs run against it ---------------------------------------------------------------

    @property
    def environment(self) -> dict[str, str]:
        """What points programs at it."""
        return {
            **environment_without_a_cloud(),
            "BOCKD_CONFIG": str(configured(self.data_dir, self._config)),
            "BOCKD_DATA": str(self.data_dir),
            "BOCKD_NBD_LISTEN": self._nbd_listen,
            "BOCKD_API_LISTEN": self._api_listen,
            "BOCKD_METRICS_LISTEN": self._metrics_listen,
        }

    def run(self, *arguments: str | Path) -> Result:
        """Run a program to its end, which may be any."""
        name = Path(arguments[0]).name
        if name in ("bock", "bockd"):
            assert arguments[0] == program(name)
            return Result(*forked.run(name, arguments[1:], self.environment, PROGRAM_SECONDS))
        ended = subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=PROGRAM_SECONDS,
            check=False,
        )
        return Result(ended.returncode, ended.stdout, ended.stderr)

    def tool(self, name: str, *arguments: str | Path) -> str:
        """Run an installed tool, which must succeed; returns its output."""
        result = self.run(program(name), *arguments)
        assert result.status == 0, f"{name} {arguments}: {result.err}\n{result.out}"
        return result.out

    def bock(self, *arguments: str | Path) -> Any:
        """Run `bock ... --json`, which must succeed; returns the document."""
        result = self.run(program("bock"), *arguments, "--json")
        assert (result.status, result.err) == (0, ""), result
        return json.loads(result.out)

    def refusal(self, *arguments: str | Path) -> str:
        """Run `bock`, which must fail with one line; returns the line."""
        result = self.run(program("bock"), *arguments)
        assert (result.status, result.out) == (1, ""), result
        assert result.err.count("\n") == 1, result
        return result.err.strip()

    def misuse(self, *arguments: str | Path) -> str:
        """Run `bock`, which must say that it was called wrongly; returns what it says, without the
        line breaks."""
        result = self.run(program("bock"), *arguments)
        assert (result.status, result.out) == (2, ""), result
        return " ".join(result.err.split())

    def check(self) -> dict[str, Any]:
        """`bockd check`, by the daemon if it runs; the report, which must be clean."""
        result = self.run(program("bockd"), "check", "--json")
        assert result.status == 0, f"{result.err}{result.out}"
        report: dict[str, Any] = json.loads(result.out)
        assert report["clean"], report
        assert report["problems"] == [], report
        return report

    @contextmanager
    def control(self) -> Iterator[ControlClient]:
        """The control interface without a process for each call: where a test looks often."""
        with ControlClient(self.data_dir / "api.sock") as client:
            yield client

    @contextmanager
    def storage(self) -> Iterator[StorageClient]:
        """The first tenant's block storage, without a process for each call."""
        with StorageClient(load(None, self.environment).settings, {}) as client:
            yield client

    # -- NBD ---------------------------------------------------------------------------------

    @property
    def nbd_socket(self) -> Path:
        return self.data_dir / "nbd.sock"

    @property
    def nbd_port(self) -> int:
        """Of the TCP listener, as announced."""
        line = next(line for line in self.announced if "NBD, TCP:" in line)
        found = re.search(r":(\d+) ", line)
        assert found is not None, line
        return int(found[1])

    @property
    def api_url(self) -> str:
        """Of the block storage API, as announced."""
        line = next(line for line in self.announced if "block storage API:" in line)
        found = re.search(r"(https?://[^ ]+)/ ", line)
        assert found is not None, line
        return found[1]

    @property
    def metrics_url(self) -> str:
        """Of the listener for Prometheus, as announced."""
        line = next(line for line in self.announced if "metrics:" in line)
        found = re.search(r"(https?://[^ ]+)/$", line)
        assert found is not None, line
        return found[1]

    def uri(self, export: str) -> str:
        """The NBD URI of an export on the Unix socket."""
        return f"nbd+unix:///{quote(export)}?socket={quote(str(self.nbd_socket))}"

    def connect(self, export: str) -> Any:
        """A libnbd handle that is connected (python3-libnbd has no types)."""
        handle = nbd.NBD()
        handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
        handle.connect_uri(self.uri(export))
        return handle

    @contextmanager
    def connected(self, export: str) -> Iterator[Any]:
        """A libnbd handle for the duration; it says goodbye at the end."""
        handle = self.connect(export)
        try:
            yield handle
        finally:
            handle.shutdown()

    def wait_until_unused(self, volume: str) -> None:
        """Return once the daemon has seen the volume's clients go."""
        with self.control() as control:
            while control.show_volume(volume).connections:
                pass

    # -- files -------------------------------------------------------------------------------

    def layer_files(self) -> dict[str, int]:
        """The layers' segment files, and for each the bytes that hold data (not holes)."""
        return {path.name: data_bytes(path) for path in (self.data_dir / "layers").iterdir()}


def data_bytes(path: Path) -> int:
    """How much of a sparse file is not hole."""
    total = 0
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        at = 0
        while at < size:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole is left
                break
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            total += at - start
    return total


def environment_without_a_cloud() -> dict[str, str]:
    """Ours, without what points OpenStack's clients elsewhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith("OS_")}


def program(name: str) -> str:
    """The path of a program: ours of this environment, or an installed tool; a missing one says
    what to run."""
    own = Path(sys.executable).with_name(name)
    found = str(own) if own.exists() else shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    assert found is not None, f"{name} is not installed; run: make setup"
    return found


def lines_of(process: subprocess.Popen[bytes] | forked.Program, deadline: float) -> Iterator[str]:
    """What the process prints, line by line, until it ends or the deadline has passed, which kills
    it."""
    assert process.stdout is not None
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            *lines, pending = pending.split(b"\n")
            for line in lines:
                yield line.decode()
            if not selector.select(max(0.0, deadline - time.monotonic())):
                process.kill()
                return
            data = os.read(process.stdout.fileno(), 65536)
            if not data:
                return
            pending += data


@contextmanager
def serving(
    data_dir: Path,
    *,
    nbd_listen: str = "none",
    api_listen: str = "none",
    metrics_listen: str = "none",
    config: Path = Path("/dev/null"),
    log: Path | None = None,
    mount: Path | None = None,
    launcher: Sequence[str | Path] = (),
    is_forked: bool = True,
) -> Iterator[Bockd]:
    """A running daemon, for the duration. If it still runs at the end, it must stop well. Its log
    is beside the data directory unless it shall be elsewhere. `launcher` is a command that
    becomes the one behind it. Without one its process is one of `tests/forked.py`, unless the test
    is about the program itself."""
    log = log or data_dir.with_name(data_dir.name + ".log")
    daemon = Bockd(
        data_dir,
        log,
        nbd_listen=nbd_listen,
        api_listen=api_listen,
        metrics_listen=metrics_listen,
        mount=mount,
        config=config,
        launcher=launcher,
        is_forked=is_forked,
    )
    daemon.start()
    try:
        yield daemon
        if daemon.running:
            daemon.stop()
    finally:
        daemon.end()
