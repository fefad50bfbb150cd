"""Images of many small pieces, of which the map is what counts: asked for it, and mirrored."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from bench.files import write_back
from bench.fio import Job, run_job
from bench.nbdclient import seconds_of
from bench.processes import BenchError, pinned, run
from bench.results import Comparison, Section, Target
from bench.servers import BOCKD, PEERS, RAW_THREADS, Served, serve_bockd
from bench.turns import BenchContext, Contestant, Scale, in_turn, method_of_turns, timed
from bockd.model import BLOCK_SIZE, KIB

STATUS_ROW, MAP_ROW, MIRROR_ROW = "block-status-one-by-one", "qemu-img-map", "mirror-scattered"
ROWS = (STATUS_ROW, MAP_ROW, MIRROR_ROW)
SAME_TIME, MIRROR_TIME = Target(1.0, at_most=True), Target(1.5, at_most=True)

STRIDE_BYTES = 64 * KIB
"""From the beginning of one piece to that of the next; each is one block."""
MOST_ROUNDS = 3
"""They are long."""
MIRROR_SECONDS = 120.0
"""Far beyond any mirror here."""


def measure_map_queries(scale: Scale, context: BenchContext, rows: Sequence[str] = ROWS) -> Section:
    """Measure the rows that are asked for."""
    scale = replace(scale, rounds=min(scale.rounds, MOST_ROUNDS))
    size = scale.pieces * STRIDE_BYTES
    core = context.placement.client
    ways: dict[str, tuple[Callable[[Served], float], Target]] = {
        STATUS_ROW: (lambda served: seconds_of("status", served.uri, size, core=core), SAME_TIME),
        MAP_ROW: (lambda served: _map(served, core), SAME_TIME),
        MIRROR_ROW: (lambda served: mirror(served, size, context), MIRROR_TIME),
    }
    comparisons: list[Comparison] = []
    with ExitStack() as stack:
        servers = {}
        for name, serve in ((BOCKD, serve_bockd), (RAW_THREADS, PEERS[RAW_THREADS].serve)):
            context.tell(f"scattering {scale.pieces:,} pieces over the image of {name}")
            directory = context.directory / f"m-{name.split()[0]}"
            servers[name] = stack.enter_context(serve(directory, size, context.placement))
            _scatter(servers[name], scale.pieces, size, core)
        for row in rows:
            way, target = ways[row]
            contestants = [
                Contestant(
                    name,
                    run=lambda served, way=way: timed(way(served), scale.pieces),  # type: ignore[misc]
                    prepare=partial(_same, served),
                )
                for name, served in servers.items()
            ]
            turns = in_turn(row, contestants, scale, context, unit="s")
            comparisons.append(turns.against(RAW_THREADS, target))
    method = (
        f"An image with {scale.pieces:,} pieces of 4 KiB, one in each 64 KiB. `{STATUS_ROW}`: its "
        "map, one extent a request (NBD_CMD_FLAG_REQ_ONE), one after another. "
        f"`{MIRROR_ROW}`: qemu-storage-daemon's blockdev-mirror of all of it into a new raw file, "
        f"until both are the same; {method_of_turns(scale, context)}"
    )
    return Section("Maps of many pieces", method, tuple(comparisons))


def _same(served: Served) -> Served:
    return served


def _scatter(served: Served, pieces: int, size_bytes: int, core: int | None) -> None:
    gap = (STRIDE_BYTES - BLOCK_SIZE) // KIB
    job = Job(f"write:{gap}k", BLOCK_SIZE, 32, size_bytes, io_bytes=pieces * BLOCK_SIZE)
    run_job(job, served.uri, core=core)
    write_back(served.directory)


def _map(served: Served, core: int | None) -> float:
    began = time.perf_counter()
    with pinned(core):
        run(["qemu-img", "map", "--output=json", "--image-opts", f"driver=nbd,{_address(served)}"])
    return time.perf_counter() - began


def _address(served: Served) -> str:
    """As QEMU has it in an option."""
    name, _, socket_path = served.uri.removeprefix("nbd+unix:///").partition("?socket=")
    return f"server.type=unix,server.path={socket_path},export={name}"


def mirror(served: Served, size_bytes: int, context: BenchContext) -> float:
    """Mirror an export into a new file with qemu-storage-daemon. Return the seconds until it says
    that both are the same. Raises BenchError."""
    target = context.directory / "mirrored"
    target.unlink(missing_ok=True)
    target.touch()
    os.truncate(target, size_bytes)
    nodes = [
        *("--blockdev", f"driver=nbd,node-name=source,{_address(served)}"),
        *("--blockdev", f"driver=file,node-name=target,filename={target}"),
    ]
    monitor = ["--chardev", "stdio,id=monitor", "--monitor", "chardev=monitor"]
    with pinned(context.placement.client):
        daemon = subprocess.Popen(
            ["qemu-storage-daemon", *nodes, *monitor],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    with daemon:
        try:
            return _mirrored(daemon)
        finally:
            daemon.kill()


def _mirrored(daemon: subprocess.Popen[str]) -> float:
    assert daemon.stdin is not None
    assert daemon.stdout is not None

    def say(command: str, **arguments: str) -> None:
        assert daemon.stdin is not None
        daemon.stdin.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        daemon.stdin.flush()

    say("qmp_capabilities")
    began = time.perf_counter()
    say(
        "blockdev-mirror", **{"job-id": "m", "device": "source", "target": "target", "sync": "full"}
    )
    said = []
    for line in daemon.stdout:
        if '"BLOCK_JOB_READY"' in line:
            return time.perf_counter() - began
        said.append(line)
        if '"error"' in line or time.perf_counter() - began > MIRROR_SECONDS:
            break
    raise BenchError(f"qemu-storage-daemon did not mirror:\n{''.join(said)}")
