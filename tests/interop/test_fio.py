"""fio's NBD engine, which writes checksums into what it writes and reads all of it back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ..daemon.process import Bockd

DEPTH = 64


def fio(daemon: Bockd, work: Path, *jobs: tuple[str, ...]) -> None:
    """Run jobs side by side; every byte must verify."""
    options = (
        "--ioengine=nbd",
        "--verify=crc32c",
        "--verify_fatal=1",
        f"--iodepth={DEPTH}",
        "--thread",
        "--output-format=json",
        "--randrepeat=0",
        "--verify_state_save=0",
        f"--output={work / 'fio.json'}",
    )
    arguments = [option for job in jobs for option in job]
    daemon.tool("fio", *options, *arguments)
    # fio may print warnings before its JSON.
    text = (work / "fio.json").read_text()
    document = json.loads(text[text.index("{") :])
    assert len(document["jobs"]) == len(jobs)
    for job in document["jobs"]:
        assert job["error"] == 0, job
        if job["trim"]["io_bytes"]:
            continue
        assert job["write"]["io_bytes"] > 0
        assert job["read"]["io_bytes"] >= job["write"]["io_bytes"]  # all was read back


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("4k", ("--bs=4k",)),
        ("64k", ("--bs=64k",)),
        ("512", ("--bs=512", "--size=2M")),
        # Requests of whole sectors that share blocks: partial writes meet in one block.
        ("odd", ("--bsrange=512-13824", "--blockalign=512", "--bs_unaligned=0")),
        ("large", ("--bs=1536k",)),
    ],
)
def test_random_writes_verify(
    daemon: Bockd, tmp_path: Path, name: str, sizes: tuple[str, ...]
) -> None:
    """At queue depth 64, with several block sizes, on a new volume and then over its snapshot."""
    volume = f"fio-{name}"
    daemon.bock("volume", "create", volume, "--size", "32M")
    job = (
        *("--name=job", f"--uri={daemon.uri(volume)}", "--rw=randwrite", "--size=24M"),
        *sizes,
    )
    fio(daemon, tmp_path, job)
    daemon.bock("snapshot", "create", volume, f"{volume}-1")
    fio(daemon, tmp_path, (*job, "--randseed=7"))


def test_trims_beside_the_writes(daemon: Bockd, tmp_path: Path) -> None:
    """One client writes and verifies while another trims the same leaves of the map: each 64 KiB of
    the one lie between 64 KiB of the other. (fio cannot verify a load that trims and writes at one
    place: it mistakes the trims for writes, with other servers too.)"""
    daemon.bock("volume", "create", "fio-trims", "--size", "64M")
    uri = daemon.uri("fio-trims")
    daemon.tool("qemu-io", "-f", "raw", "-c", "write -P 1 0 64M", uri)
    stripes = ("--zonemode=strided", "--zonesize=64k", "--zonerange=128k", "--size=16M")
    fio(
        daemon,
        tmp_path,
        ("--name=writer", f"--uri={uri}", "--rw=write", "--bs=4k", *stripes),
        ("--name=trimmer", f"--uri={uri}", "--rw=trim", "--bs=16k", "--offset=64k", *stripes),
    )
    # The trimmer's stripes are holes, the writer's are not, and what is behind both is untouched.
    with daemon.connected("fio-trims") as client:
        for stripe in range(0, 32 << 20, 128 << 10):
            assert client.pread(64 << 10, stripe + (64 << 10)) == bytes(64 << 10)
        assert client.pread(32 << 20, 32 << 20) == b"\1" * (32 << 20)
    space = daemon.bock("volume", "show", "fio-trims")["space"]
    assert space["exclusive_bytes"] == (16 + 32) << 20


def test_several_connections_to_one_volume(daemon: Bockd, tmp_path: Path) -> None:
    """Four jobs with a connection each, interleaved in stripes smaller than a leaf."""
    daemon.bock("volume", "create", "fio-shared", "--size", "64M")
    fio(
        daemon,
        tmp_path,
        *(
            (
                *(f"--name=job{number}", f"--uri={daemon.uri('fio-shared')}", "--rw=randwrite"),
                *("--bs=4k", f"--offset={number * 8}M", "--size=8M", f"--randseed={number}"),
            )
            for number in range(4)
        ),
    )
    assert daemon.bock("volume", "show", "fio-shared")["space"]["exclusive_bytes"] == 32 << 20


def test_many_volumes_at_once(daemon: Bockd, tmp_path: Path) -> None:
    """Twenty volumes, each written and verified by a client of its own at the same time."""
    names = [f"fio-many-{number}" for number in range(20)]
    with daemon.storage() as storage:
        for name in names:
            storage.create_volume(name, 4 << 20)
    fio(
        daemon,
        tmp_path,
        *(
            (
                f"--name={name}",
                f"--uri={daemon.uri(name)}",
                "--rw=randwrite",
                "--bs=4k",
                "--size=4M",
            )
            for name in names
        ),
    )
    with daemon.control() as control:
        by_name = {volume.name: volume for volume in control.list_volumes()}
        assert all(by_name[name].status in ("available", "in-use") for name in names)
