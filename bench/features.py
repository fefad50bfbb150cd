"""A volume while a feature is at work on it, beside the same volume without: recorded (`bock trace
record`), watched (its heat map in the dashboard), and limited far above what it does."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event, Thread
from typing import Final, Protocol
from urllib.parse import urlsplit

from bench.files import write_back
from bench.fio import Job, Outcome, run_job
from bench.processes import BenchError, pinned
from bench.results import Comparison, Section, Target
from bench.servers import BOCKD, EXPORT, Daemon, Served, bockd_daemon, program
from bench.throughput import fill
from bench.turns import BenchContext, Contestant, Scale, in_turn, method_of_turns
from bockd.cli.client import ControlClient
from bockd.model import KIB

DEPTH = 32
ASK_SECONDS = 1.0
"""Between two questions for a heat map: as the page asks."""
ANSWER_SECONDS = 30.0
PLENTY = "10000000"
"""Operations in a second that nobody reaches."""


class Feature(Protocol):
    """What is at work on the volume while it is measured."""

    def begin(self) -> None:
        """Begin; the daemon has been told when this returns."""

    def end(self) -> None:
        """End, and take away what was made."""


class Recording:
    """`bock trace record`, on the clients' core."""

    def __init__(self, daemon: Daemon, context: BenchContext) -> None:
        self._daemon = daemon
        self._file = context.directory / "trace"
        self._core = context.placement.client
        self._process: subprocess.Popen[str] | None = None

    def begin(self) -> None:
        """See `Feature`."""
        with pinned(self._core):
            self._process = subprocess.Popen(
                [program("bock"), "trace", "record", EXPORT, "-o", self._file, "--force"],
                env=self._daemon.environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        while self._process.poll() is None and not _begun(self._file):
            pass

    def end(self) -> None:
        """See `Feature`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        _, said = self._process.communicate()
        if self._process.returncode:
            raise BenchError(f"bock trace record failed:\n{said}")
        self._file.unlink()


def _begun(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0


class Watching:
    """Who looks at the volume's heat map, on the clients' core."""

    def __init__(self, daemon: Daemon, context: BenchContext) -> None:
        with ControlClient(daemon.data_dir / "api.sock") as control:
            link = urlsplit(control.make_dashboard_link().url)
            self._path = f"/data/heat?volume={control.show_volume(EXPORT).id}"
        self._core = context.placement.client
        self._connection = http.client.HTTPConnection(
            "127.0.0.1", link.port, timeout=ANSWER_SECONDS
        )
        origin = f"{link.scheme}://{link.netloc}"
        headers = {"Host": link.netloc, "Origin": origin, "Content-Type": "application/json"}
        answer = self._ask("POST", "/enter", json.dumps({"link": link.fragment}), headers)
        session = answer.headers["set-cookie"].partition(";")[0]
        self._headers = {"Host": link.netloc, "Cookie": session}
        self._ended = Event()
        self._thread: Thread | None = None

    def _ask(
        self, method: str, path: str, body: str | None, headers: dict[str, str]
    ) -> http.client.HTTPResponse:
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise BenchError(f"the dashboard answered {answer.status}: {content!r}")
        return answer

    def _look(self) -> None:
        self._ask("GET", self._path, None, self._headers)

    def _watch(self) -> None:
        while not self._ended.wait(ASK_SECONDS):
            self._look()

    def begin(self) -> None:
        """See `Feature`."""
        self._look()
        self._ended.clear()
        with pinned(self._core):
            self._thread = Thread(target=self._watch)
            self._thread.start()

    def end(self) -> None:
        """See `Feature`."""
        assert self._thread is not None
        self._ended.set()
        self._thread.join()


class Limiting:
    """A limit of the volume that it never comes to."""

    def __init__(self, daemon: Daemon, _context: BenchContext) -> None:
        self._daemon = daemon

    def begin(self) -> None:
        """See `Feature`."""
        self._daemon.bock("volume", "limit", EXPORT, "--iops", PLENTY)

    def end(self) -> None:
        """See `Feature`."""
        self._daemon.bock("volume", "limit", EXPORT, "--none")


FEATURES: Final[dict[str, tuple[Callable[[Daemon, BenchContext], Feature], Target | None]]] = {
    "recorded": (Recording, Target(0.97)),
    "watched": (Watching, Target(0.97)),
    "limited": (Limiting, None),
}
ROWS: Final = {
    f"4k-{mode}-qd{DEPTH}-{feature}": (mode, feature)
    for feature in FEATURES
    for mode in ("randread", "randwrite")
}


def measure_features(scale: Scale, context: BenchContext, rows: Sequence[str]) -> Section:
    """Measure the rows that are asked for."""
    comparisons: list[Comparison] = []
    with bockd_daemon(context.directory / "features", context.placement) as daemon:
        served = daemon.volume(EXPORT, scale.size_bytes)
        fill(served, scale.size_bytes, context.placement)
        for row in rows:
            mode, name = ROWS[row]
            make, target = FEATURES[name]
            job = Job(mode, 4 * KIB, DEPTH, scale.size_bytes, seconds=scale.seconds)
            core = context.placement.client
            contestants = _contestants(served, name, make(daemon, context), job, core)
            turns = in_turn(row, contestants, scale, context, watched=False)
            comparisons.append(turns.against(BOCKD, target))
    method = (
        f"fio's nbd engine over a Unix socket, {DEPTH} requests of 4 KiB at once, on a full volume "
        f"of {scale.size_bytes >> 20} MiB, without anything and (`recorded`) with `bock trace "
        "record` at work on the clients' core, (`watched`) with its heat map asked for once a "
        f"second, (`limited`) with a limit of {int(PLENTY):,} operations a second, which takes it "
        f"out of the fast lane; {method_of_turns(scale, context)}"
    )
    return Section("While a feature is at work", method, tuple(comparisons))


def _contestants(
    served: Served, name: str, feature: Feature, job: Job, core: int | None
) -> tuple[Contestant, Contestant]:
    """Return the volume with a feature at work, and the same without."""

    def run(served: Served) -> Outcome:
        return run_job(job, served.uri, core=core)

    def with_feature() -> Served:
        feature.begin()
        return served

    def written() -> None:
        write_back(served.directory)

    def without_feature() -> None:
        feature.end()
        written()

    return (
        Contestant(f"{BOCKD}, {name}", run, with_feature, without_feature),
        Contestant(BOCKD, run, lambda: served, written),
    )
