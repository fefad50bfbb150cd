"""The servers that are measured: bockd and its peers, each at its best honest setting.

A server keeps its data in a directory of its own and offers one export of a given size. Data may
stay in the page cache, as bockd promises no more (a write that no flush followed may be lost with
the power, not with the process), so peers run with write-back caching.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from bench.processes import READY_SECONDS, BenchError, Placement, run, serving

EXPORT = "bench"
"""The export's name everywhere; in bockd that of the volume."""

BOCKD = "bockd"


@dataclass(frozen=True)
class Served:
    """A running server."""

    name: str
    pid: int
    uri: str
    directory: Path
    """Holds all that the server writes."""
    setting: str
    """The options that matter, for the report."""


Serve = Callable[[Path, int, Placement], AbstractContextManager[Served]]
"""Start a server that keeps its data in a directory and has an empty export of some bytes."""


@dataclass(frozen=True)
class Peer:
    """A server to compare bockd with."""

    serve: Serve
    optional: bool = False
    """Left out where the kernel does not have what it needs."""


def nbd_uri(name: str, socket_path: Path) -> str:
    """An export on a Unix socket."""
    return f"nbd+unix:///{name}?socket={quote(str(socket_path))}"


@dataclass(frozen=True)
class Daemon:
    """A running `bockd serve`."""

    pid: int
    data_dir: Path
    log: Path

    @property
    def api_port(self) -> int:
        """Of the block storage API, if it is public: as announced."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            found = re.search(r"http://127\.0\.0\.1:(\d+)/", self.log.read_text())
            if found is not None:
                return int(found[1])
        raise BenchError(f"bockd does not say where its API is:\n{self.log.read_text()}")

    def bock(self, *arguments: str) -> str:
        """Run `bock` against it and return what it prints; BenchError when it fails."""
        return run([_program("bock"), *arguments], environment=_environment(self.data_dir))

    def uri(self, volume: str) -> str:
        """Where a volume is exported."""
        return nbd_uri(volume, self.data_dir / "nbd.sock")


@contextmanager
def bockd_daemon(data_dir: Path, placement: Placement, *, public: bool = False) -> Iterator[Daemon]:
    """`bockd serve` on `data_dir`, as a user would start it, without TCP listeners but, if it is
    to be `public`, that of the block storage API."""
    data_dir.mkdir(parents=True, exist_ok=True)
    log = data_dir.with_suffix(".log")
    with serving(
        [_program("bockd"), "serve"],
        socket_path=data_dir / "api.sock",  # the last door that opens
        core=placement.server,
        log=log,
        environment=_environment(data_dir, api_listen="127.0.0.1:0" if public else "none"),
    ) as pid:
        yield Daemon(pid, data_dir, log)


def _program(name: str) -> str:
    """A console script of the environment that runs the benchmark."""
    return str(Path(sys.executable).parent / name)


def _environment(data_dir: Path, *, api_listen: str = "none") -> dict[str, str]:
    return {
        **os.environ,
        "BOCKD_CONFIG": "/dev/null",
        "BOCKD_DATA": str(data_dir),
        "BOCKD_NBD_LISTEN": "none",
        "BOCKD_API_LISTEN": api_listen,
    }


@contextmanager
def serve_bockd(directory: Path, size_bytes: int, placement: Placement) -> Iterator[Served]:
    """A daemon with one volume."""
    with bockd_daemon(directory, placement) as daemon:
        daemon.bock("volume", "create", EXPORT, "--size", str(size_bytes))
        yield Served(BOCKD, daemon.pid, daemon.uri(EXPORT), directory, "bockd serve")


def qemu_nbd(name: str, image_format: str, aio: str) -> Serve:
    """`qemu-nbd` with one way of doing its input and output."""

    @contextmanager
    def serve(directory: Path, size_bytes: int, placement: Placement) -> Iterator[Served]:
        directory.mkdir(parents=True)
        image, socket_path = directory / "image", directory / "nbd.sock"
        run(["qemu-img", "create", "-q", "-f", image_format, str(image), str(size_bytes)])
        options = [f"--format={image_format}", "--cache=writeback", f"--aio={aio}"]
        command = ["qemu-nbd", "--persistent", "--shared=16", f"--export-name={EXPORT}"]
        with serving(
            [*command, *options, f"--socket={socket_path}", str(image)],
            socket_path=socket_path,
            core=placement.server,
            log=directory.with_suffix(".log"),
        ) as pid:
            uri = nbd_uri(EXPORT, socket_path)
            setting = " ".join(["qemu-nbd", *options])
            yield Served(name, pid, uri, directory, setting)

    return serve


def nbdkit(plugin: str) -> Serve:
    """`nbdkit` with its file or memory plugin."""

    @contextmanager
    def serve(directory: Path, size_bytes: int, placement: Placement) -> Iterator[Served]:
        directory.mkdir(parents=True)
        image, socket_path = directory / "image", directory / "nbd.sock"
        if plugin == "file":
            image.touch()
            os.truncate(image, size_bytes)
        argument = str(image) if plugin == "file" else str(size_bytes)
        with serving(
            ["nbdkit", "--foreground", f"--unix={socket_path}", plugin, argument],
            socket_path=socket_path,
            core=placement.server,
            log=directory.with_suffix(".log"),
        ) as pid:
            # These plugins serve the same export under any name.
            uri = nbd_uri(EXPORT, socket_path)
            yield Served(f"nbdkit {plugin}", pid, uri, directory, f"nbdkit {plugin}")

    return serve


QCOW2_THREADS = "qemu-nbd qcow2"
QCOW2_IO_URING = "qemu-nbd qcow2 io_uring"

PEERS: dict[str, Peer] = {
    QCOW2_THREADS: Peer(qemu_nbd(QCOW2_THREADS, "qcow2", "threads")),
    QCOW2_IO_URING: Peer(qemu_nbd(QCOW2_IO_URING, "qcow2", "io_uring"), optional=True),
    "qemu-nbd raw": Peer(qemu_nbd("qemu-nbd raw", "raw", "threads")),
    "qemu-nbd raw io_uring": Peer(qemu_nbd("qemu-nbd raw io_uring", "raw", "io_uring"), True),
    "nbdkit file": Peer(nbdkit("file")),
    "nbdkit memory": Peer(nbdkit("memory")),
}
"""By name, as `--peer` takes them. Threads are what qemu-nbd uses when it is not told otherwise."""

DEFAULT_PEERS = (QCOW2_THREADS, QCOW2_IO_URING, "nbdkit file")
