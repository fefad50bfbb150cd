"""Device profiles through a whole daemon: as fio measures them, and as qemu-io reads errors.

Nothing is answered before its time, however busy the machine is: that is what is tested here. That
it is not answered much later either is tested on a machine that is idle (`make test-profiles`).
"""

from __future__ import annotations

import errno
import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

import nbd
import pytest

from bockd.cli.client import ControlClient
from bockd.model import DeviceOperation, DeviceProfile
from bockd.profiles.builtin import built_in
from bockd.profiles.device import ProfiledDevice
from bockd.profiles.distribution import Distribution

from .process import Bockd, program, serving

MIB = 1 << 20
BLOCK = 4096
SIZE = 64 * MIB

PERCENTILES = {"0": 4_000, "50": 10_000, "90": 20_000, "99": 40_000, "100": 80_000}

SAMPLE = 0.05
"""fio's histogram is as exact as 2 %, and an answer goes out 80 us before it is due."""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bockd]:
    with serving(tmp_path_factory.mktemp("profiles") / "pool") as running:
        running.expect_in_log("the device profile '.*' lets it fail")
        yield running


def volume(daemon: Bockd, name: str, work: Path, **fields: Any) -> DeviceProfile:
    """Make a volume with a profile of these fields."""
    document = work / f"{name}.json"
    document.write_text(json.dumps({"name": name, **fields}))
    daemon.bock("volume", "create", name, "--size", "64MiB", "--profile", f"@{document}")
    with daemon.control() as control:
        found = control.show_volume(name).profile
    assert found is not None
    return found


def arguments(daemon: Bockd, name: str, work: Path, *options: str) -> list[str]:
    """A job of fio on a volume, whose numbers go to fio.json."""
    return [
        *("--ioengine=nbd", "--thread", "--size=64M", "--bs=4k", f"--name={name}"),
        *(f"--uri={daemon.uri(name)}", "--percentile_list=10:50:90:99", "--randrepeat=1"),
        *("--output-format=json", f"--output={work / 'fio.json'}", *options),
    ]


def outcome(work: Path) -> Any:
    text = (work / "fio.json").read_text()
    found = json.loads(text[text.index("{") :])["jobs"][0]
    assert not found["error"]
    return found


def measured(daemon: Bockd, name: str, work: Path, *options: str, side: str) -> dict[float, float]:
    """Run fio. Return the latencies at each percentile, in milliseconds."""
    daemon.tool("fio", *arguments(daemon, name, work, *options))
    found = outcome(work)[side]["clat_ns"]["percentile"]
    return {float(percent): ns / 1e6 for percent, ns in found.items()}


def claimed(profile: DeviceProfile, count: int, operation: DeviceOperation) -> dict[float, float]:
    """What so many requests at random places take on an idle machine, in milliseconds: the very
    ones that the seed leads to. The places are others than fio's."""
    device, random, now = ProfiledDevice(profile, 0), Random(1), 0
    taken = []
    for _ in range(count):
        offset = random.randrange(SIZE // BLOCK) * BLOCK
        due = device.plan(operation, offset, BLOCK, size_bytes=SIZE, now=now).due_ns
        taken.append((due - now) / 1e6)
        now = due
    taken.sort()
    return {percent: taken[int(percent / 100 * count)] for percent in (10, 50, 90, 99)}


JOBS: Mapping[str, tuple[dict[str, Any], int, tuple[str, ...], DeviceOperation]] = {
    "fixed": ({"write_us": 20_000}, 300, ("--rw=randwrite", "--iodepth=8"), DeviceOperation.WRITE),
    "spread": ({"read_us": PERCENTILES}, 1000, ("--rw=randread", "--iodepth=16"),
               DeviceOperation.READ),
    "spinning": ({"disk": {
        "rpm": 7200, "track_seek_us": 1_000, "average_seek_us": 8_500, "full_seek_us": 15_000,
        "outer_bytes_per_second": 160_000_000, "inner_bytes_per_second": 80_000_000,
    }}, 200, ("--rw=randread", "--iodepth=1"), DeviceOperation.READ),
}  # fmt: skip
"""The fields of a profile, how many requests, and of which kind."""


def compared(daemon: Bockd, work: Path, kind: str, name: str) -> dict[float, tuple[float, float]]:
    """What a profile claims at each percentile, and what fio measures, in milliseconds."""
    fields, count, options, operation = JOBS[kind]
    profile = volume(daemon, name, work, **fields)
    found = measured(daemon, name, work, f"--number_ios={count}", *options, side=operation.value)
    return {
        percent: (ms, found[percent]) for percent, ms in claimed(profile, count, operation).items()
    }


@pytest.mark.parametrize("kind", JOBS)
def test_nothing_is_answered_before_its_time(daemon: Bockd, tmp_path: Path, kind: str) -> None:
    for percent, (least, found) in compared(daemon, tmp_path, kind, kind).items():
        # The places that fio reads are others: a disk's percentiles are those of 200 of them.
        sample = 0.2 if kind == "spinning" else SAMPLE
        assert found >= least * (1 - sample), f"p{percent}"


@pytest.mark.profile_times
@pytest.mark.parametrize("kind", JOBS)
def test_percentiles_are_those_that_a_profile_claims(
    daemon: Bockd, tmp_path: Path, kind: str
) -> None:
    """Within 10 %. This machine must be idle."""
    for percent, (least, found) in compared(daemon, tmp_path, kind, f"{kind}-idle").items():
        assert found == pytest.approx(least, rel=0.1), f"p{percent}"


def test_profile_is_kept_and_answers_the_same_again(daemon: Bockd, tmp_path: Path) -> None:
    """With the same seed, after a restart, the same requests fail."""
    rule = {"operations": ["read"], "percent": 20}
    volume(daemon, "again", tmp_path, seed=5, errors=[rule])

    def failed() -> list[int]:
        with daemon.connected("again") as client:
            return [number for number in range(100) if not reads(client, 0)]

    first = failed()
    assert 5 < len(first) < 40
    daemon.restart()
    assert failed() == first
    daemon.bock("volume", "profile", "again", "--off")
    assert failed() == []


def reads(client: Any, offset: int) -> bool:
    """Whether a block can be read: an error must be EIO."""
    try:
        client.pread(BLOCK, offset)
    except nbd.Error as error:
        if error.errnum != errno.EIO:
            raise
        return False
    return True


def test_qemu_io_reads_errors_of_a_dying_disk(daemon: Bockd, tmp_path: Path) -> None:
    """Where the profile says, and what is there is unharmed when the profile is gone."""
    rule = {"operations": ["read", "write"], "offset_bytes": MIB, "length_bytes": BLOCK}
    volume(daemon, "bad", tmp_path, read_us=1000, errors=[rule])

    def qemu_io(*commands: str) -> str:
        options = [part for one in commands for part in ("-c", one)]
        result = daemon.run(program("qemu-io"), "-f", "raw", *options, daemon.uri("bad"))
        return result.out + result.err

    assert "error" not in qemu_io("write -P 1 0 1M", "write -P 3 1028k 1M", "flush")
    assert "write failed: Input/output error" in qemu_io("write -P 9 1020k 64k")
    assert "read failed: Input/output error" in qemu_io("read 1M 512")
    daemon.bock("volume", "profile", "bad", "--off")
    checked = qemu_io("read -P 1 0 1M", "read -P 0 1M 4k", "read -P 3 1028k 1M")
    assert "failed" not in checked
    assert checked.count("read 1048576/1048576 bytes") == 2


def test_profiles_are_switched_while_fio_runs(daemon: Bockd, tmp_path: Path) -> None:
    """From a device that is stuck to one that is slow, and to none; fio sees no error."""
    volume(daemon, "switched", tmp_path, stalls=[{"seconds": 3600, "after_requests": 100}])
    job = arguments(
        daemon, "switched", tmp_path, "--rw=randrw", "--iodepth=4", "--number_ios=10000"
    )
    with subprocess.Popen([program("fio"), *job]) as running:
        try:
            with daemon.control() as control:
                wait_for_requests(control, "switched", 100)
                # Stuck: what is under way is all that comes.
                assert wait_for_requests(control, "switched", 100) <= 104
                slow = tmp_path / "slow.json"
                slow.write_text('{"name": "slow", "read_us": 5000, "write_us": 5000}')
                daemon.bock("volume", "profile", "switched", f"@{slow}")
                wait_for_requests(control, "switched", 200)
                daemon.bock("volume", "profile", "switched", "--off")
            assert running.wait(240) == 0
        finally:
            running.kill()
    found = outcome(tmp_path)
    assert found["read"]["total_ios"] + found["write"]["total_ios"] == 10000


def wait_for_requests(control: ControlClient, name: str, count: int) -> int:
    """Return how many requests a volume was sent, once they are so many."""
    while True:
        found = next((one for one in control.statistics() if one.name == name), None)
        if found is not None and found.reads + found.writes >= count:
            return found.reads + found.writes


def test_stop_and_snapshot_do_not_wait_for_a_device_that_is_stuck(
    daemon: Bockd, tmp_path: Path
) -> None:
    volume(daemon, "stuck", tmp_path, stalls=[{"seconds": 3600, "after_requests": 0}])
    client = daemon.connect("stuck")
    client.aio_pwrite(b"x" * BLOCK, 0)
    client.poll(1000)
    with daemon.control() as control:
        wait_for_requests(control, "stuck", 1)
    daemon.bock("snapshot", "create", "stuck", "stuck-1")
    daemon.restart()
    daemon.bock("volume", "create", "copy", "--from-snapshot", "stuck-1")
    with daemon.connected("copy") as again:
        assert again.pread(BLOCK, 0) == b"x" * BLOCK


def test_recorded_latencies_become_a_profile(daemon: Bockd, tmp_path: Path) -> None:
    """Those of a disk are recorded, and another volume has them then."""
    volume(daemon, "recorded", tmp_path, read_us=PERCENTILES)
    trace = tmp_path / "recorded.trace"
    recorder = subprocess.Popen(
        [program("bock"), "trace", "record", "recorded", "-o", trace, "--max-size", "40KiB"],
        env=daemon.environment,
    )
    with daemon.control() as control:
        while not trace.exists():
            control.info()
        job = arguments(
            daemon, "recorded", tmp_path, "--rw=randread", "--iodepth=16", "--number_ios=1500"
        )
        daemon.tool("fio", *job)
        assert recorder.wait(120) == 0
    fields = json.loads(daemon.tool("bock", "trace", "profile", trace))
    assert fields.pop("name") == "recorded"
    profile = volume(daemon, "like", tmp_path, **fields)
    expected = Distribution(PERCENTILES)
    for fraction in (0.1, 0.5, 0.9):
        assert Distribution(profile.read_us).at(fraction) >= 0.9 * expected.at(fraction)
    assert profile.write_us == 0


def test_built_in_profile_survives_an_image_of_it(daemon: Bockd) -> None:
    """It stands in the volume's record as a whole, and a copy of the volume has none."""
    daemon.bock("volume", "create", "whole", "--size", "64MiB", "--profile", "hdd-7200")
    assert daemon.bock("volume", "show", "whole")["profile"] == "hdd-7200"
    daemon.bock("snapshot", "create", "whole", "whole-1")
    daemon.bock("volume", "create", "part", "--from-snapshot", "whole-1")
    assert daemon.bock("volume", "show", "part")["profile"] is None
    with daemon.control() as control:
        assert control.show_volume("whole").profile == built_in("hdd-7200")
