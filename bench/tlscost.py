"""Large requests through TLS, beside nbdkit with the same certificate."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import trustme

from bench.files import write_back
from bench.fio import Outcome
from bench.processes import pinned, run
from bench.results import Comparison, Section, Target
from bench.servers import BOCKD, EXPORT, NBDKIT_FILE, Served, bockd_daemon, nbdkit
from bench.turns import BenchContext, Contestant, Scale, in_turn, method_of_turns
from bockd.model import MIB

READ_ROW, WRITE_ROW = "tls-1m-read-qd8", "tls-1m-write-qd8"
ROWS = (READ_ROW, WRITE_ROW)
NEARLY = Target(0.9)
DEPTH = 8
"""Requests of 1 MiB, of one connection."""


def measure_tls(scale: Scale, context: BenchContext, rows: Sequence[str] = ROWS) -> Section:
    """Measure the rows that are asked for."""
    keys = context.directory / "keys"
    _certify(keys)
    comparisons: list[Comparison] = []
    data = context.directory / "data"
    data.write_bytes(os.urandom(MIB) * (scale.size_bytes // MIB))
    with _bockd(keys, scale, context) as ours, _nbdkit(keys, scale, context) as theirs:
        servers = {BOCKD: ours, NBDKIT_FILE: theirs}
        for served in servers.values():
            _copy([str(data), served.uri], scale, context)
        sides: dict[str, Callable[[str], list[str]]] = {
            READ_ROW: lambda uri: [uri, "null:"],
            WRITE_ROW: lambda uri: [str(data), uri],
        }
        for row in rows:
            contestants = [
                _copying(name, served, sides[row](served.uri), scale, context)
                for name, served in servers.items()
            ]
            turns = in_turn(row, contestants, scale, context, unit="MiB/s")
            comparisons.append(turns.against(NBDKIT_FILE, NEARLY))
    method = (
        f"nbdcopy of an image of {scale.size_bytes >> 20} MiB to nowhere, and from a file "
        f"over what is there, with {DEPTH} requests of 1 MiB at once on one connection with TLS "
        f"over TCP on the loopback interface; {method_of_turns(scale, context)}"
    )
    return Section("Through TLS", method, tuple(comparisons))


def _copying(
    name: str, served: Served, sides: Sequence[str], scale: Scale, context: BenchContext
) -> Contestant:
    return Contestant(
        name,
        run=lambda _: _copy(sides, scale, context),
        prepare=lambda: served,
        after=lambda: write_back(served.directory),
    )


def _copy(sides: Sequence[str], scale: Scale, context: BenchContext) -> Outcome:
    at_once = ["--connections=1", f"--requests={DEPTH}", f"--request-size={MIB}"]
    began = time.perf_counter()
    with pinned(context.placement.client):
        run(["nbdcopy", *at_once, "--no-extents", "--sparse=0", "--allocated", *sides])
    mebibytes = scale.size_bytes // MIB
    return Outcome(mebibytes, mebibytes / (time.perf_counter() - began))


def _certify(directory: Path) -> None:
    """Make a certificate for this machine, under the names that nbdkit and libnbd look for."""
    directory.mkdir()
    authority = trustme.CA()
    made = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(directory / "ca-cert.pem")
    made.cert_chain_pems[0].write_to_path(directory / "server-cert.pem")
    (directory / "server-key.pem").touch(mode=0o600)
    made.private_key_pem.write_to_path(directory / "server-key.pem")


def _secure(uri: str, keys: Path) -> str:
    return f"nbds://{uri.partition('://')[2]}?tls-certificates={keys}"


@contextmanager
def _bockd(keys: Path, scale: Scale, context: BenchContext) -> Iterator[Served]:
    config = context.directory / "bockd.toml"
    config.write_text(
        f'[tls]\ncertificate_file = "{keys}/server-cert.pem"\nkey_file = "{keys}/server-key.pem"\n'
        '[nbd]\ntls = "require"\n'
    )
    directory = context.directory / "tls"
    with bockd_daemon(directory, context.placement, tcp=True, config=config) as daemon:
        served = daemon.volume(EXPORT, scale.size_bytes, tcp=True)
        yield replace(served, uri=_secure(served.uri, keys))


@contextmanager
def _nbdkit(keys: Path, scale: Scale, context: BenchContext) -> Iterator[Served]:
    tls = ("--tls=require", f"--tls-certificates={keys}")
    serve = nbdkit("file", tls)
    directory = context.directory / "tls-nbdkit"
    with serve(directory, scale.size_bytes, context.placement, tcp=True) as served:
        yield replace(served, uri=_secure(served.uri, keys))
