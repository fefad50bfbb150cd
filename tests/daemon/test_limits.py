"""Limits of I/O through a whole daemon, measured by fio: kept, and no more than they allow.

How much of them is used depends on the machine's load; that no more passes does not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .process import Bockd, serving

KIB = 1 << 10
MIB = 1 << 20
SECONDS = 2


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bockd]:
    with serving(tmp_path_factory.mktemp("limits") / "pool") as running:
        yield running


def fio(daemon: Bockd, work: Path, volumes: list[str], *options: str) -> tuple[int, float]:
    """Run a job on volumes at once. Return the operations of all, and how long it took."""
    output = work / "fio.json"
    jobs = [part for one in volumes for part in (f"--name={one}", f"--uri={daemon.uri(one)}")]
    daemon.tool(
        "fio",
        *("--ioengine=nbd", "--thread", "--size=32M", "--time_based", f"--runtime={SECONDS}"),
        *("--output-format=json", f"--output={output}", *options, *jobs),
    )
    text = output.read_text()
    found: list[dict[str, Any]] = json.loads(text[text.index("{") :])["jobs"]
    sides = [one[side] for one in found for side in ("read", "write")]
    assert not any(one["error"] for one in found)
    return sum(one["total_ios"] for one in sides), max(one["runtime"] for one in sides) / 1000


def test_limits_hold_and_are_kept(daemon: Bockd, tmp_path: Path) -> None:
    daemon.bock("volume", "create", "iops", "--size", "32MiB")
    daemon.bock("volume", "limit", "iops", "--iops", "200")
    daemon.restart()
    done, seconds = fio(
        daemon, tmp_path, ["iops"], "--rw=randrw", "--bs=4k", "--iodepth=32", "--numjobs=2"
    )
    assert 100 <= done <= 20 + 200 * (seconds + 0.1)
    daemon.bock("volume", "limit", "iops", "--none")
    more, _ = fio(daemon, tmp_path, ["iops"], "--rw=randread", "--bs=4k", "--iodepth=32")
    assert more > 2 * done


def test_bytes_are_limited(daemon: Bockd, tmp_path: Path) -> None:
    daemon.bock("volume", "create", "bps", "--size", "32MiB")
    daemon.bock("volume", "limit", "bps", "--write-bps", "8MiB")
    for size in (64 * KIB, MIB):
        done, seconds = fio(
            daemon, tmp_path, ["bps"], "--rw=randwrite", f"--bs={size}", "--iodepth=4"
        )
        assert done * size <= MIB + 8 * MIB * (seconds + 0.1)
        assert done * size >= 4 * MIB


def test_volumes_of_a_tenant_share_its_limits(daemon: Bockd, tmp_path: Path) -> None:
    for name in ("one", "other"):
        daemon.bock("volume", "create", name, "--size", "32MiB")
    daemon.bock("tenant", "limit", "demo", "--iops", "200")
    try:
        done, seconds = fio(
            daemon, tmp_path, ["one", "other"], "--rw=randread", "--bs=4k", "--iodepth=16"
        )
        assert 100 <= done <= 20 + 200 * (seconds + 0.1)
    finally:
        daemon.bock("tenant", "limit", "demo", "--none")


def test_the_end_of_the_daemon_does_not_wait_for_tokens(daemon: Bockd) -> None:
    daemon.bock("volume", "create", "slow", "--size", "32MiB")
    daemon.bock("volume", "limit", "slow", "--iops", "1")
    client = daemon.connect("slow")
    for number in range(100):
        client.aio_pwrite(bytes(4096), 4096 * number)
    client.poll(1000)
    daemon.bock("snapshot", "create", "slow", "slow-1")  # nor does this
    daemon.restart()
    with daemon.connected("slow") as again:
        assert again.pread(4096, 0) == bytes(4096)
