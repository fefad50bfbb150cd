"""A volume among thousands while somebody looks at all of them, beside the same unwatched: what 99
of 100 reads of one block take, and the longest, which tells how long the event loop stood still.

    python -m bench.watched
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import click
import httpx

from bench.apicost import make_pool
from bench.fio import Job, Outcome, run_job
from bench.processes import place
from bench.servers import EXPORT, Daemon, bockd_daemon
from bench.throughput import fill
from bockd.cli.client import ControlClient
from bockd.model import KIB, MIB

SIZE_BYTES = 16 * MIB
"""Of the volume that is read: all of it is in memory."""

ANSWER_SECONDS = 120.0

MIN_PAUSE_SECONDS = 1.0
"""From one question to the next."""

Ask = Callable[[], bytes]


@contextmanager
def _dashboard(daemon: Daemon) -> Iterator[Ask]:
    """The list of everything, as a page gets it that has just changed something."""
    with ControlClient(daemon.data_dir / "api.sock") as control:
        link = urlsplit(control.make_dashboard_link().url)
    headers = {"Host": link.netloc, "Origin": f"{link.scheme}://{link.netloc}"}
    base = f"http://127.0.0.1:{link.port}"
    with httpx.Client(base_url=base, headers=headers, timeout=ANSWER_SECONDS) as client:
        entered = client.post("/enter", json={"link": link.fragment}).raise_for_status()
        client.headers["Cookie"] = entered.headers["set-cookie"].partition(";")[0]
        yield lambda: _content(client.get("/data/overview?fresh=true"))


@contextmanager
def _over_the_socket(daemon: Daemon, path: str) -> Iterator[Ask]:
    transport = httpx.HTTPTransport(uds=str(daemon.data_dir / "api.sock"))
    with httpx.Client(
        transport=transport, base_url="http://bockd", timeout=ANSWER_SECONDS
    ) as client:
        yield lambda: _content(client.get(path))


def _content(answer: httpx.Response) -> bytes:
    return answer.raise_for_status().content


Watcher = Callable[[Daemon], AbstractContextManager[Ask]]

WATCHERS: dict[str, Watcher] = {
    "dashboard": _dashboard,
    "/metrics": lambda daemon: _over_the_socket(daemon, "/metrics"),
    "bock volume list, control API": lambda daemon: _over_the_socket(daemon, "/control/v1/volumes"),
}


class _Asking:
    """Asks again and again in a thread, on the clients' core."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._over = threading.Event()
        self.seconds: list[float] = []
        self.size_bytes = 0

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            began = time.perf_counter()
            self.size_bytes = len(self._ask())
            self.seconds.append(time.perf_counter() - began)
            # A scrape is remembered for a second.
            self._over.wait(max(0.0, began + MIN_PAUSE_SECONDS - time.perf_counter()))


@click.command()
@click.option("--volumes", type=click.IntRange(1), default=10_000, show_default=True)
@click.option("--seconds", type=click.FloatRange(1), default=5.0, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, exists=True),
    default=Path("/dev/shm"),
    show_default=True,
)
def main(volumes: int, seconds: float, rounds: int, directory: Path) -> None:
    """Read a block again and again, with and without somebody who looks at all VOLUMES."""
    placement = place()
    job = Job("randread", 4 * KIB, 1, SIZE_BYTES, seconds=seconds)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=directory) as scratch:
        pool = Path(scratch) / "pool"
        click.echo(f"making {volumes:,} volumes")
        make_pool(pool, volumes)
        with bockd_daemon(pool, placement) as daemon:
            served = daemon.volume(EXPORT, SIZE_BYTES)
            fill(served, SIZE_BYTES, placement)

            def read() -> Outcome:
                return run_job(job, served.uri, core=placement.client)

            for name, watcher in WATCHERS.items():
                alone, beside, asking = [], [], []
                with watcher(daemon) as ask:
                    for _ in range(rounds):
                        alone.append(read())
                        with _Asking(ask) as asked:
                            beside.append(read())
                        asking.append(asked)
                click.echo(describe(name, alone, beside, asking))


def describe(name: str, alone: list[Outcome], beside: list[Outcome], asking: list[_Asking]) -> str:
    """Return what was found, as text."""
    taken = statistics.median(one for asked in asking for one in asked.seconds)
    lines = [f"{name}: {taken * 1000:.0f} ms for {asking[-1].size_bytes:,} bytes"]
    for what, found in (("alone", alone), ("beside it", beside)):
        p99 = statistics.median(one.p99_us for one in found)
        longest = statistics.median(one.longest_us for one in found) / 1000
        rate = statistics.median(one.rate for one in found)
        lines.append(
            f"  reads {what}: {rate:,.0f} a second, p99 {p99:.0f} us, longest {longest:.1f} ms"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
