"""`bock volume limit` and `bock tenant limit`: what is set, shown and refused."""

from __future__ import annotations

from typing import Any

import pytest

from .daemon import Daemon


def shown(daemon: Daemon, volume: str) -> dict[str, Any]:
    """The limits that `bock volume show` has, without those that there are not."""
    limits = daemon.bock_json("volume", "show", volume)["limits"]
    return {name: value for name, value in limits.items() if value is not None}


def rate(per_second: int, burst: int | None = None, seconds: int = 1) -> dict[str, int | None]:
    return {"per_second": per_second, "burst": burst, "burst_seconds": seconds}


def test_limits_of_a_volume(daemon: Daemon) -> None:
    daemon.bock("volume", "create", "limited", "--size", "1MiB")
    assert shown(daemon, "limited") == {}
    said = daemon.bock("volume", "limit", "limited", "--iops", "500", "--bps", "50MiB")
    assert "limit of operations: 500/s" in said
    assert "limit of bytes: 50 MiB/s" in said
    assert shown(daemon, "limited") == {"iops": rate(500), "bps": rate(50 << 20)}
    assert "limit of bytes" in daemon.bock("volume", "show", "limited")
    # What is not named has no limit any more.
    options = ("--write-iops", "100", "--burst", "write-iops=1000:30", "--iops-size", "16KiB")
    said = daemon.bock("volume", "limit", "limited", *options)
    assert "limit of writes: 100/s, bursts of 1000/s for 30 s" in said
    assert shown(daemon, "limited") == {
        "write_iops": rate(100, 1000, 30),
        "iops_size": 16384,
    }
    said = daemon.bock("volume", "limit", "limited", "--read-bps", "1M/s", "--burst", "read-bps=4M")
    assert "limit of bytes read: 1 MiB/s, bursts of 4 MiB" in said
    assert "has no limits\n" in daemon.bock("volume", "limit", "limited", "--none")
    assert shown(daemon, "limited") == {}


def test_limits_are_kept_and_stay_with_the_volume(daemon: Daemon) -> None:
    """Grown, renamed and reverted it keeps them; a copy of it has none."""
    daemon.bock("volume", "create", "kept-limits", "--size", "1MiB")
    daemon.bock("volume", "limit", "kept-limits", "--iops", "500")
    daemon.bock("snapshot", "create", "kept-limits", "kept-limits-1")
    daemon.bock("volume", "extend", "kept-limits", "--size", "2MiB")
    daemon.bock("snapshot", "revert", "kept-limits-1", "--yes")
    assert shown(daemon, "kept-limits") == {"iops": rate(500)}
    daemon.bock("volume", "create", "kept-copy", "--from-snapshot", "kept-limits-1")
    assert shown(daemon, "kept-copy") == {}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ((), "give limits, like --iops 500"),
        (("--iops", "0"), "'0' is not a number of operations"),
        (("--iops", "many"), "'many' is not a number of operations"),
        (("--bps", "50MB"), "write 50MiB"),
        (("--iops", "500", "--none"), "give limits"),
        (("--burst", "iops=2000:30"), "a burst of iops needs the limit, too: --iops"),
        (("--iops", "5", "--burst", "2000"), "'2000' is not like iops=2000"),
        (("--iops", "5", "--burst", "speed=2000"), "'speed=2000' is not like iops=2000"),
    ],
)
def test_misuse(daemon: Daemon, options: tuple[str, ...], text: str) -> None:
    assert text in daemon.misuse("volume", "limit", "nobody", *options)


def test_what_makes_no_sense_is_refused_by_the_daemon(daemon: Daemon) -> None:
    daemon.bock("volume", "create", "senseless", "--size", "1MiB")
    for options, text in (
        (("--iops", "500", "--burst", "iops=5"), "the burst of iops is 5; it may be 500"),
        (("--bps", "1M", "--iops-size", "4K"), "iops_size means nothing"),
        (("--iops", "5", "--iops-size", "1"), "iops_size is 1"),
        (("--iops", "5", "--burst", "iops=9:0"), "lasts 0 s"),
    ):
        assert text in daemon.refusal("volume", "limit", "senseless", *options)
    assert shown(daemon, "senseless") == {}
    assert "there is no volume 'none'" in daemon.refusal("volume", "limit", "none", "--none")


def test_limits_of_a_tenant(daemon: Daemon) -> None:
    daemon.bock("tenant", "create", "limited")
    said = daemon.bock("tenant", "limit", "limited", "--bps", "500MiB", "--read-iops", "10000")
    assert "limit of bytes: 500 MiB/s" in said
    found = daemon.bock_json("tenant", "show", "limited")["limits"]
    assert (found["bps"], found["read_iops"]) == (rate(500 << 20), rate(10000))
    assert "limit of reads  10000/s" in daemon.bock("tenant", "show", "limited")
    daemon.bock("tenant", "quota", "limited", "--volumes", "3")  # keeps them
    assert daemon.bock_json("tenant", "show", "limited")["limits"]["bps"] == rate(500 << 20)
    assert "has no limits" in daemon.bock("tenant", "limit", "limited", "--none")
    daemon.bock("tenant", "delete", "limited", "--yes")
