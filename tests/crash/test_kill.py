"""SIGKILL of the daemon while fio writes (promise D1), some times.

fio writes each place of a volume once, with a checksum; what its completion log says was
acknowledged must verify. The stricter check, with our own client, is tests/crash/test_storm.py.
"""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bockd.control import VolumeStatistics
from tests.amounts import amount

from ..daemon.process import Bockd, program, serving

KILLS = amount(3)
MAX_HANGS = 5
FIO_END_SECONDS = 20.0

SEED = 81


@pytest.fixture
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bockd]:
    with serving(tmp_path_factory.mktemp("crash") / "pool") as running:
        # A record that the kill tore apart was not acknowledged; recovery says that it was there.
        running.expect_in_log("never flushed and do not count")
        yield running


def fio_arguments(daemon: Bockd, work: Path, number: int) -> list[str]:
    return [
        "--ioengine=nbd",
        f"--uri={daemon.uri(f'fio-{number}')}",
        "--name=job",
        "--rw=randwrite",
        "--bs=4k",
        "--size=96M",
        "--iodepth=64",
        "--verify=crc32c",
        "--thread",
        f"--randseed={number + 1}",
        "--randrepeat=0",  # which would take the same seed for every run
        f"--aux-path={work}",
    ]


def places_that_fail(daemon: Bockd, work: Path, number: int) -> set[int]:
    """Run fio's verification of the job alone; the offsets at which it finds something else."""
    arguments = fio_arguments(daemon, work, number)
    result = daemon.run("fio", *arguments, "--verify_only", "--verify_state_load=1")
    return {
        int(offset)
        for offset in re.findall(r"^verify: bad .* offset (\d+), length 4096", result.err, re.M)
    }


def acknowledged_places(log: Path) -> set[int]:
    """fio's log of completions (time, latency, direction, size, offset, ...); 1 is a write."""
    fields = [line.split(", ") for line in log.read_text().splitlines()]
    return {int(entry[4]) for entry in fields if entry[2] == "1"}


def test_what_fio_was_told_survives_kills(daemon: Bockd, tmp_path: Path) -> None:
    """fio writes each place of a volume once, with a checksum; all but what was under way when the
    daemon died must verify. Each kill has a volume of its own, because fio's verification takes
    what an earlier run wrote for the right thing; the one before is deleted, so that its space is
    reclaimed during the load."""
    print(f"seed {SEED}")
    choose = random.Random(SEED)
    kills = hangs = 0
    while kills < KILLS:
        number = kills + hangs
        daemon.bock("volume", "create", f"fio-{number}", "--size", "96M")
        if number:
            daemon.bock("volume", "delete", f"fio-{number - 1}", "--yes")
        enough = choose.randint(1 << 20, 40 << 20)
        work = tmp_path / str(number)
        work.mkdir()
        ended = write_until_killed(daemon, work, number, enough)
        daemon.check()
        daemon.start()
        if not ended:
            hangs += 1
            assert hangs <= MAX_HANGS
            continue
        acknowledged = acknowledged_places(work / "log_clat.1.log")
        assert len(acknowledged) * 4096 >= enough - (64 << 12)
        failed = places_that_fail(daemon, work, number)
        print(f"kill {kills}: {len(acknowledged)} acknowledged, {len(failed)} under way")
        assert not failed & acknowledged
        assert len(failed) <= 64
        daemon.wait_until_unused(f"fio-{number}")
        daemon.check()
        kills += 1


def write_until_killed(daemon: Bockd, work: Path, number: int, enough: int) -> bool:
    """Let fio write, and kill the daemon when `enough` bytes are written. False when fio did not
    end: fio 3.33 now and then spins on a connection that is gone, and then writes no log."""
    log = ("--log_offset=1", f"--write_lat_log={work / 'log'}", "--do_verify=0")
    with subprocess.Popen(
        [program("fio"), *fio_arguments(daemon, work, number), *log],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=work,
    ) as client:
        try:
            with daemon.control() as control:
                while written(control.statistics()) < enough:
                    assert client.poll() is None
            daemon.kill()
            assert client.wait(FIO_END_SECONDS) != 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            client.kill()
    return True


def written(statistics: list[VolumeStatistics]) -> int:
    return sum(entry.written_bytes for entry in statistics)
