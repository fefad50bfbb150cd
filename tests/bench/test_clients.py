"""The benchmark's own clients: what they ask for, and that a refusal is an error and no figure."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

import pytest

from bench import clones
from bench.mapqueries import mirror
from bench.nbdclient import seconds_of
from bench.processes import BenchError, place, serving
from bench.servers import Served, unix_uri
from bench.turns import BenchContext
from bockd.model import MIB
from tests.daemon.filesystems import mounted

SIZE_BYTES = 4 * MIB


@contextmanager
def nbdkit(directory: Path, *arguments: str) -> Iterator[Served]:
    address = directory / "nbd.sock"
    command = ["nbdkit", "--foreground", f"--unix={address}", *arguments]
    with serving(command, address=address, core=None, log=directory / "log") as pid:
        yield Served("nbdkit", pid, unix_uri("", address), directory, "")


def image(directory: Path) -> Path:
    """Eight pieces of 4 KiB, with holes between them."""
    made = directory / "image"
    with made.open("wb") as file:
        for number in range(8):
            os.pwrite(file.fileno(), b"x" * 4096, number * 65536)
        file.truncate(SIZE_BYTES)
    return made


@pytest.mark.parametrize(
    ("action", "pieces", "asked", "times"),
    [
        ("trim", (MIB,), r"Trim id=\d+ offset=0x\w+ count=0x100000", 4),
        ("status", (), r"Extents id=\d+ .* req_one=1", 16),
        ("allocate", (), r"Zero id=\d+ offset=0x0 count=0x400000 trim=0", 1),
    ],
)
def test_each_action_asks_for_what_its_row_says(
    tmp_path: Path, action: str, pieces: tuple[int, ...], asked: str, times: int
) -> None:
    """The map of eight pieces, each with a hole behind it, takes sixteen requests."""
    log, made = tmp_path / "requests", image(tmp_path)
    with nbdkit(tmp_path, "--filter=log", "file", str(made), f"logfile={log}") as served:
        assert seconds_of(action, served.uri, SIZE_BYTES, *pieces, core=None) > 0
    said = log.read_text()

    assert len(re.findall(rf"connection=\d+ {asked}", said)) == times, said


@pytest.mark.parametrize(
    ("action", "error"), [("trim", "trim"), ("status", "extents"), ("allocate", "zero")]
)
def test_a_request_that_fails_is_an_error(tmp_path: Path, action: str, error: str) -> None:
    failing = ("--filter=error", "file", str(image(tmp_path)), f"error-{error}-rate=100%")
    pieces = (MIB,) if action == "trim" else ()
    with nbdkit(tmp_path, *failing) as served, pytest.raises(BenchError):
        seconds_of(action, served.uri, SIZE_BYTES, *pieces, core=None)


def test_a_mirror_has_all_of_its_source(tmp_path: Path) -> None:
    made = image(tmp_path)
    context = BenchContext(tmp_path, place(), lambda _: None)
    with nbdkit(tmp_path, "file", str(made)) as served:
        assert mirror(served, SIZE_BYTES, context) > 0

    assert (tmp_path / "mirrored").read_bytes() == made.read_bytes()


def test_a_mirror_that_does_not_begin_is_an_error(tmp_path: Path) -> None:
    """The target is smaller than its source."""
    context = BenchContext(tmp_path, place(), lambda _: None)
    made = image(tmp_path)
    with (
        nbdkit(tmp_path, "file", str(made)) as served,
        pytest.raises(BenchError, match="did not mirror"),
    ):
        mirror(served, SIZE_BYTES // 2, context)


def test_the_time_until_space_is_back_is_that_of_the_file_system(tmp_path: Path) -> None:
    """A file that is still open keeps its space when its name is gone. The file system is one of
    its own: tests beside this one take space from the machine's."""
    with mounted("ext4", tmp_path, 128 * MIB) as root:
        made = root / "large"
        made.write_bytes(bytes(64 * MIB))
        os.sync()
        held = made.open("rb")
        closing = Timer(0.5, held.close)
        closing.start()

        assert clones.seconds_until_free(made.unlink, root, 64 * MIB) > 0.4
        closing.join()


def test_space_that_does_not_come_back_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clones, "BACK_SECONDS", 0.0)

    with pytest.raises(BenchError, match="did not come back"):
        clones.seconds_until_free(lambda: None, tmp_path, 1 << 40)
