"""The servers that are measured: bockd and its peers, each at its best honest setting.

A server keeps its data in a directory of its own and offers one export of a given size. Data may
stay in the page cache, as bockd promises no more (a write that no flush followed may be lost with
the power, not with the process), so peers run with write-back caching.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from click.testing import CliRunner

from bench.processes import (
    READY_SECONDS,
    Address,
    BenchError,
    Placement,
    daemonized,
    free_port,
    run,
    serving,
)
from bockd.cli.bock import main as bock
from bockd.cli.client import ControlClient
from bockd.model import NodeKind
from bockd.overunix import UnixConnection
from bockd.pool.reports import Space

EXPORT = "bench"
"""The export's name everywhere; in bockd that of the volume."""

BOCKD = "bockd"


@dataclass(frozen=True)
class Flushes:
    """What a server has counted so far."""

    done: int
    errors: int
    """Of all kinds of requests."""


@dataclass(frozen=True)
class Served:
    """A running server."""

    name: str
    pid: int
    """Leader of its session; see `processes.cpu_seconds`."""
    uri: str
    directory: Path
    """Holds all that the server writes."""
    setting: str
    """The options that matter, for the report."""
    flushes: Callable[[], Flushes] | None = None
    """Asks the server what it has counted; None where it does not say."""


class Serve(Protocol):
    """Starts a server."""

    def __call__(
        self, directory: Path, size_bytes: int, placement: Placement, *, tcp: bool = False
    ) -> AbstractContextManager[Served]:
        """Start a server that keeps its data in `directory`, which is new. It has an empty export
        of `size_bytes`, on a Unix socket, or on TCP over the loopback interface."""
        ...


@dataclass(frozen=True)
class Peer:
    """A server to compare bockd with."""

    serve: Serve
    optional: bool = False
    """Left out where it is not installed, or the kernel does not have what it needs."""


def unix_uri(name: str, socket_path: Path) -> str:
    """Return the URI of an export on a Unix socket."""
    return f"nbd+unix:///{name}?socket={quote(str(socket_path))}"


def tcp_uri(name: str, port: int) -> str:
    """Return the URI of an export on a port of the loopback interface."""
    return f"nbd://127.0.0.1:{port}/{name}"


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

    @property
    def environment(self) -> dict[str, str]:
        """What points programs at it."""
        return _environment(self.data_dir)

    def bock(self, *arguments: str) -> str:
        """Run `bock` against it and return what it prints. Raises BenchError when it fails. It runs
        in this process: a benchmark runs hundreds of commands, and starting Python for each takes
        longer than the command."""
        ended = CliRunner(env=_environment(self.data_dir)).invoke(bock, arguments)
        if ended.exit_code:
            raise BenchError(f"bock {shlex.join(arguments)} failed:\n{ended.output}")
        return ended.stdout

    def uri(self, volume: str) -> str:
        """Return the URI under which a volume is exported on the Unix socket."""
        return unix_uri(volume, self.data_dir / "nbd.sock")

    def volume(self, name: str, size_bytes: int, *, tcp: bool = False) -> Served:
        """Create a volume, and return how to reach it."""
        self.bock("volume", "create", name, "--size", str(size_bytes))
        uri = self.attach(name) if tcp else self.uri(name)
        return Served(
            BOCKD, self.pid, uri, self.data_dir, "bockd serve", lambda: self.flushes(name)
        )

    def flushes(self, volume: str) -> Flushes:
        """Return what the daemon has counted for a volume since its first connection."""
        with ControlClient(self.data_dir / "api.sock") as control:
            key = NodeKind.VOLUME, control.show_volume(volume).id
            for one in control.statistics():
                if (one.kind, one.id) == key:
                    return Flushes(one.flushes, one.errors)
        return Flushes(0, 0)

    def space(self, volume: str) -> Space:
        """Return the space of a volume, by its name in the pool."""
        with ControlClient(self.data_dir / "api.sock") as control:
            return control.space(NodeKind.VOLUME, volume)

    def attach(self, volume: str) -> str:
        """Attach a volume, and return its address on TCP."""
        attached = json.loads(self.bock("attachment", "create", volume, "bench", "--json"))
        uri: str = attached["uri"]
        return uri


@contextmanager
def bockd_daemon(
    data_dir: Path,
    placement: Placement,
    *,
    public: bool = False,
    tcp: bool = False,
    mount: Path | None = None,
    config: Path = Path("/dev/null"),
    loaded: bool = True,
) -> Iterator[Daemon]:
    """Run `bockd serve` on `data_dir` as a user would, but with a TCP listener for the block
    storage API only if it is to be `public`, and for NBD only with `tcp`. `mount` is where the file
    view goes. Not `loaded`, it still imports the code of its HTTP frontends, in the background."""
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    log = data_dir.with_suffix(".log")
    environment = {**_environment(data_dir), "BOCKD_CONFIG": str(config)}
    if public:
        environment["BOCKD_API_LISTEN"] = "127.0.0.1:0"
    if tcp:
        environment["BOCKD_NBD_LISTEN"] = "127.0.0.1:0"
    with serving(
        [program("bockd"), "serve", *(["--mount", str(mount)] if mount else [])],
        address=data_dir / "api.sock",  # the last frontend that opens
        core=placement.server,
        log=log,
        environment=environment,
    ) as pid:
        if loaded:
            _wait_for_http(data_dir / "api.sock")
        yield Daemon(pid, data_dir, log)


def _wait_for_http(path: Path) -> None:
    """Return when a daemon answers HTTP, in a way that has it build no API."""
    connection = UnixConnection(path)
    connection.timeout = READY_SECONDS
    try:
        connection.request("HEAD", "/healthz")
        connection.getresponse()
    finally:
        connection.close()


def program(name: str) -> str:
    """Return the path of a console script of the environment that runs the benchmark."""
    return str(Path(sys.executable).parent / name)


def _environment(data_dir: Path) -> dict[str, str]:
    return {
        **os.environ,
        "BOCKD_CONFIG": "/dev/null",
        "BOCKD_DATA": str(data_dir),
        "BOCKD_NBD_LISTEN": "none",
        "BOCKD_API_LISTEN": "none",
    }


@contextmanager
def serve_bockd(
    directory: Path, size_bytes: int, placement: Placement, *, tcp: bool = False
) -> Iterator[Served]:
    """Run a daemon with one volume."""
    with bockd_daemon(directory, placement, tcp=tcp) as daemon:
        yield daemon.volume(EXPORT, size_bytes, tcp=tcp)


def qemu_nbd(image_format: str, aio: str) -> Serve:
    """Return what runs `qemu-nbd` with one way of doing its input and output."""

    @contextmanager
    def serve(
        directory: Path, size_bytes: int, placement: Placement, *, tcp: bool = False
    ) -> Iterator[Served]:
        directory.mkdir(parents=True)
        image = directory / "image"
        run(["qemu-img", "create", "-q", "-f", image_format, str(image), str(size_bytes)])
        options = (f"--format={image_format}", "--cache=writeback", f"--aio={aio}")
        with serve_image(image, options, placement, tcp=tcp) as served:
            yield served

    return serve


@contextmanager
def serve_image(
    image: Path, options: Sequence[str], placement: Placement, *, tcp: bool = False
) -> Iterator[Served]:
    """Run `qemu-nbd` on an image that exists."""
    port, socket_path = free_port(), image.parent / "nbd.sock"
    socket_path.unlink(missing_ok=True)
    address: Address = ("127.0.0.1", port) if tcp else socket_path
    where = ["--bind=127.0.0.1", f"--port={port}"] if tcp else [f"--socket={socket_path}"]
    command = ["qemu-nbd", "--persistent", "--shared=16", f"--export-name={EXPORT}"]
    with serving(
        [*command, *options, *where, str(image)],
        address=address,
        core=placement.server,
        log=image.parent.with_suffix(".log"),
    ) as pid:
        uri = tcp_uri(EXPORT, port) if tcp else unix_uri(EXPORT, socket_path)
        yield Served("qemu-nbd", pid, uri, image.parent, " ".join(["qemu-nbd", *options]))


def nbdkit(plugin: str, options: Sequence[str] = ()) -> Serve:
    """Return what runs `nbdkit` with its file or memory plugin, or with ours."""

    @contextmanager
    def serve(
        directory: Path, size_bytes: int, placement: Placement, *, tcp: bool = False
    ) -> Iterator[Served]:
        directory.mkdir(parents=True)
        arguments, setting = _nbdkit_plugin(plugin, directory, size_bytes, placement)
        port, socket_path = free_port(), directory / "nbdkit.sock"
        address: Address = ("127.0.0.1", port) if tcp else socket_path
        where = ["--ipaddr=127.0.0.1", f"--port={port}"] if tcp else [f"--unix={socket_path}"]
        with serving(
            ["nbdkit", "--foreground", *options, *where, *arguments],
            address=address,
            core=placement.server,
            log=directory.with_suffix(".log"),
        ) as pid:
            # These plugins serve the same export under any name.
            uri = tcp_uri(EXPORT, port) if tcp else unix_uri(EXPORT, socket_path)
            yield Served("nbdkit", pid, uri, directory, setting)

    return serve


def _nbdkit_plugin(
    plugin: str, directory: Path, size_bytes: int, placement: Placement
) -> tuple[list[str], str]:
    """The plugin and its parameters, and how a report names them."""
    if plugin == "memory":
        return ["memory", str(size_bytes)], "nbdkit memory"
    if plugin == "file":
        image = directory / "image"
        image.touch()
        os.truncate(image, size_bytes)
        return ["file", str(image)], "nbdkit file"
    pool = directory / "pool"
    with bockd_daemon(pool, placement) as daemon:  # makes the volume, and goes
        daemon.volume(EXPORT, size_bytes)
    path = run([program("bockd"), "nbdkit-plugin"]).strip()
    parameters = [f"pool={pool}", f"volume={EXPORT}"]
    return ["python", path, *parameters], f"nbdkit python bock.py volume={EXPORT}"


@contextmanager
def serve_nbd_server(
    directory: Path, size_bytes: int, placement: Placement, *, tcp: bool = False
) -> Iterator[Served]:
    """Run `nbd-server`, the protocol's own, on a Unix socket only."""
    assert not tcp
    directory.mkdir(parents=True)
    image, settings = directory / "image", directory / "config"
    socket_path, pid_file = directory / "nbd.sock", directory / "pid"
    image.touch()
    os.truncate(image, size_bytes)
    settings.write_text(
        f"[generic]\nunixsock = {socket_path}\nport = {free_port()}\nlistenaddr = 127.0.0.1\n"
        f"[{EXPORT}]\nexportname = {image}\nflush = true\nfua = true\ntrim = true\n"
    )
    with daemonized(
        ["nbd-server", "-C", str(settings), "-p", str(pid_file)],
        pid_file=pid_file,
        address=socket_path,
        core=placement.server,
    ) as pid:
        yield Served("nbd-server", pid, unix_uri(EXPORT, socket_path), directory, "nbd-server")


@contextmanager
def serve_lmdb_values(
    directory: Path, size_bytes: int, placement: Placement, *, tcp: bool = False
) -> Iterator[Served]:
    """Run our own server on block bytes kept as LMDB values, on a Unix socket only."""
    assert not tcp
    directory.mkdir(parents=True)
    socket_path = directory / "nbd.sock"
    module = "bench.lmdbvalues"
    with serving(
        [sys.executable, "-m", module, str(directory / "data"), str(size_bytes), str(socket_path)],
        address=socket_path,
        core=placement.server,
        log=directory.with_suffix(".log"),
    ) as pid:
        uri = unix_uri(EXPORT, socket_path)
        yield Served("LMDB values", pid, uri, directory, f"python -m {module}, no sync at commit")


@contextmanager
def serve_null(
    directory: Path, size_bytes: int, placement: Placement, *, tcp: bool = False
) -> Iterator[Served]:
    """Run our own server without storage, compiled for it, on a Unix socket only."""
    assert not tcp
    directory.mkdir(parents=True)
    server, socket_path = directory / "nullserver", directory / "nbd.sock"
    run(["cc", "-O2", "-Wall", "-Wextra", str(NULL_SOURCE), "-o", str(server)])
    with serving(
        [str(server), str(socket_path), str(size_bytes)],
        address=socket_path,
        core=placement.server,
        log=directory.with_suffix(".log"),
    ) as pid:
        yield Served("null", pid, unix_uri(EXPORT, socket_path), directory, "nullserver.c")


NULL_SOURCE = Path(__file__).with_name("nullserver.c")
QCOW2_THREADS, QCOW2_IO_URING = "qemu-nbd qcow2", "qemu-nbd qcow2 io_uring"
RAW_THREADS, RAW_IO_URING = "qemu-nbd raw", "qemu-nbd raw io_uring"
NBDKIT_FILE, NBDKIT_MEMORY, NBDKIT_BOCKD = "nbdkit file", "nbdkit memory", "nbdkit bock.py"
NBD_SERVER, LMDB_VALUES = "nbd-server", "LMDB values"
NULL = "null"
"""What answers without storage: what is reached against it is the client's own limit."""

PEERS: dict[str, Peer] = {
    QCOW2_THREADS: Peer(qemu_nbd("qcow2", "threads")),
    QCOW2_IO_URING: Peer(qemu_nbd("qcow2", "io_uring"), optional=True),
    RAW_THREADS: Peer(qemu_nbd("raw", "threads")),
    RAW_IO_URING: Peer(qemu_nbd("raw", "io_uring"), optional=True),
    NBDKIT_FILE: Peer(nbdkit("file")),
    NBDKIT_MEMORY: Peer(nbdkit("memory")),
    NBDKIT_BOCKD: Peer(nbdkit("bock.py")),
    NBD_SERVER: Peer(serve_nbd_server, optional=True),
    LMDB_VALUES: Peer(serve_lmdb_values),
    NULL: Peer(serve_null),
}
"""By name, as `--peer` takes them. Threads are what qemu-nbd uses when it is not told otherwise."""
