"""Real clients: libnbd, nbdinfo and nbdcopy against a server in a thread."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbd
import pytest

from bockd.drivers.memory.device import MemoryDevice
from tests.nbd.server.serving import FixedExports, served

MIB = 1 << 20
CAN = ("cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero")


@pytest.fixture
def uri(path: Path, exports: FixedExports) -> Iterator[str]:
    with served(exports, path) as socket:
        yield f"nbd+unix:///disk?socket={socket}"


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nbdinfo_knows_everything(uri: str) -> None:
    (found,) = json.loads(run("nbdinfo", "--json", uri))["exports"]
    expected = {
        "export-name": "disk",
        "description": "test export disk",
        "contexts": ["base:allocation"],
        "export-size": 200 * MIB,
        "is_read_only": False,
        "is_rotational": False,
        "block_size_minimum": 1,
        "block_size_preferred": 4096,
        "block_size_maximum": 64 * MIB,
        **{f"can_{what}": True for what in CAN},
    }
    assert {key: found[key] for key in expected} == expected


def test_nbdinfo_lists_all(uri: str) -> None:
    listed = json.loads(run("nbdinfo", "--list", "--json", uri))
    assert [export["export-name"] for export in listed["exports"]] == [
        "disk",
        "other",
        "snapshot/monday",
    ]


def test_nbdinfo_maps_what_was_written(uri: str, device: MemoryDevice) -> None:
    for offset in (0, MIB, 100 * MIB):
        device.try_write(offset, memoryview(b"x" * 8192))
    extents = json.loads(run("nbdinfo", "--map", "--json", uri))
    data = [(extent["offset"], extent["length"]) for extent in extents if extent["type"] == 0]
    assert data == [(0, 8192), (MIB, 8192), (100 * MIB, 8192)]
    assert sum(extent["length"] for extent in extents) == 200 * MIB


@pytest.mark.parametrize("options", [["--connections=4"], ["--synchronous"], ["--no-extents"]])
def test_nbdcopy_there_and_back(uri: str, tmp_path: Path, options: list[str]) -> None:
    source, back = tmp_path / "in", tmp_path / "out"
    with source.open("wb") as file:
        file.write(os.urandom(20 * MIB))
        file.seek(150 * MIB)
        file.write(os.urandom(5 * MIB + 123))
        file.truncate(200 * MIB)
    run("nbdcopy", *options, str(source), uri)
    run("nbdcopy", *options, uri, str(back))
    run("cmp", str(source), str(back))


def connect(uri: str, **switches: bool) -> Any:
    handle = nbd.NBD()
    if not switches.get("structured", True):
        handle.set_request_structured_replies(False)
    else:
        handle.add_meta_context("base:allocation")
    handle.connect_uri(uri)
    return handle


@pytest.mark.parametrize("structured", [True, False])
def test_libnbd_commands(uri: str, structured: bool) -> None:
    handle = connect(uri, structured=structured)
    assert handle.get_structured_replies_negotiated() is structured
    data = os.urandom(3 * MIB)
    handle.pwrite(data, 12345)
    assert handle.pread(len(data), 12345) == data
    handle.pwrite(data[:4096], 0, nbd.CMD_FLAG_FUA)
    handle.zero(4096, 0, nbd.CMD_FLAG_FAST_ZERO)
    assert handle.pread(4096, 0) == bytes(4096)
    with pytest.raises(nbd.Error) as caught:
        handle.zero(4096, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
    assert caught.value.errno == "ENOTSUP"
    handle.trim(MIB, 16 * MIB, nbd.CMD_FLAG_FUA)
    handle.cache(MIB, 0)
    handle.flush()
    handle.set_strict_mode(0)
    with pytest.raises(nbd.Error) as caught:
        handle.pread(1, 200 * MIB)
    assert caught.value.errno == "EINVAL"
    with pytest.raises(nbd.Error) as caught:
        handle.pwrite(b"x", 200 * MIB)
    assert caught.value.errno == "ENOSPC"
    assert handle.pread(10, 12345 + 4096) == data[4096:4106]
    handle.shutdown()


@pytest.mark.parametrize("structured", [True, False])
def test_libnbd_with_many_requests_in_flight(
    uri: str, device: MemoryDevice, structured: bool
) -> None:
    handle = connect(uri, structured=structured)
    data = os.urandom(16 * MIB)
    sizes = [4096, 100_000, 300_000, 1_500_000, 1, 65_536, 262_144]
    device.immediate = False
    pending = []
    position = 0
    for n in range(40):
        piece = data[position : position + sizes[n % len(sizes)]]
        buffer = nbd.Buffer.from_bytearray(bytearray(piece))
        pending.append((handle.aio_pwrite(buffer, position), buffer))
        position += len(piece)
        device.immediate = bool(n % 3)
    while handle.aio_in_flight():
        handle.poll(-1)
    assert all(handle.aio_command_completed(cookie) for cookie, _ in pending)
    assert handle.pread(position, 0) == data[:position]
    handle.shutdown()


def test_qemu_sees_the_export(uri: str) -> None:
    assert json.loads(run("qemu-img", "info", "--output=json", uri))["virtual-size"] == 200 * MIB


def test_an_option_dialogue_that_is_given_up(uri: str) -> None:
    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.connect_uri(uri)
    handle.opt_info()
    assert handle.get_size() == 200 * MIB
    handle.opt_abort()


def test_a_read_only_export(path: Path, uri: str) -> None:
    handle = connect(f"nbd+unix:///snapshot/monday?socket={path}")
    assert handle.is_read_only()
    assert not handle.can_trim()
    assert handle.pread(512, 0) == bytes(512)
    handle.shutdown()


def test_an_unknown_export_is_refused_with_a_reason(path: Path, uri: str) -> None:
    with pytest.raises(nbd.Error, match=r"not available|no export"):
        connect(f"nbd+unix:///nothing?socket={path}")
