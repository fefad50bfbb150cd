"""The metrics of a whole daemon: what clients did is in them once, whichever way it was served."""

from __future__ import annotations

import subprocess
from pathlib import Path

import httpx
import nbd
import pytest

from bockd.model import split_export_uri
from tests.daemon.metrics.scraping import Scrape, get
from tests.daemon.process import Bockd, program, serving

MIB = 1 << 20
OPERATIONS = ("read", "write", "flush", "trim")

FUA = 1
"""libnbd's CMD_FLAG_FUA."""


def do_all_kinds_of_requests(daemon: Bockd, volume: str) -> None:
    """Small and large ones, alone and many at once, in place and new."""
    with daemon.connected(volume) as client:
        for number in range(64):
            client.pwrite(b"a" * 4096, number * 4096)
        client.flush()
        for number in range(64):
            assert client.pread(4096, number * 4096) == b"a" * 4096
        client.pwrite(b"b" * 2 * MIB, 4 * MIB)
        client.pwrite(b"c" * 2 * MIB, 5 * MIB, FUA)
        client.pwrite(b"d" * 512, 100, FUA)
        assert client.pread(3 * MIB, 4 * MIB) == b"b" * MIB + b"c" * 2 * MIB
        client.trim(MIB, 4 * MIB)
        client.trim(MIB, 5 * MIB, FUA)
        client.zero(4096, 0)
        client.zero(8 * MIB, 8 * MIB, 2)  # NO_HOLE
        client.cache(4096, 0)
        client.flush()
    daemon.wait_until_unused(volume)


def run_fio(daemon: Bockd, volume: str, directory: Path) -> None:
    """Two clients that have many requests under way."""
    daemon.tool(
        "fio",
        *("--name=all", "--ioengine=nbd", f"--uri={daemon.uri(volume)}", "--rw=randrw"),
        *("--bs=4k", "--iodepth=32", "--numjobs=2", "--io_size=8m", "--size=16m", "--fsync=64"),
        f"--output={directory / 'fio'}",
    )
    daemon.wait_until_unused(volume)


def test_each_request_is_counted_and_timed_once(daemon: Bockd, tmp_path: Path) -> None:
    for volume in ("one", "two"):
        daemon.bock("volume", "create", volume, "--size", "32M")
    do_all_kinds_of_requests(daemon, "one")
    run_fio(daemon, "two", tmp_path)
    found = Scrape.fresh(daemon)
    assert found.label("bockd_export_info", "export") == {"one", "two"}
    for operation in OPERATIONS:
        counted = found.value("bockd_operations_total", operation=operation)
        name = "operation_seconds"
        assert found.value(f"bockd_{name}_count", operation=operation) == counted > 0
        assert found.value(f"bockd_{name}_sum", operation=operation) > 0
        assert sum(found.values(f"bockd_export_{name}_count", operation=operation)) == counted
        for export in ("one", "two"):
            of_one = found.values(f"bockd_export_{name}_bucket", export=export, operation=operation)
            assert of_one == sorted(of_one)
    for operation, moved in (("read", 64 * 4096 + 3 * MIB), ("write", 64 * 4096 + 4 * MIB + 512)):
        assert found.value("bockd_export_bytes_total", export="one", operation=operation) == moved
    assert found.value("bockd_operations_total", operation="trim") == 4
    assert found.value("bockd_operation_errors_total") == 0
    assert found.value("bockd_requests_in_flight") == 0
    assert found.value("bockd_nbd_payload_bytes") == 0
    assert found.value("bockd_ready") == 1


def test_promtool_finds_nothing_to_say(daemon: Bockd) -> None:
    daemon.bock("volume", "create", "one", "--size", "1M")
    with daemon.connected("one") as client:
        client.pread(4096, 0)
        text = get(daemon, "/metrics").text
    said = subprocess.run(
        [program("promtool"), "check", "metrics"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")


def test_what_is_deleted_has_no_series_and_stays_in_the_sums(daemon: Bockd) -> None:
    daemon.bock("volume", "create", "gone", "--size", "1M")
    with daemon.connected("gone") as client:
        for _ in range(7):
            client.pwrite(b"x" * 4096, 0)
        assert Scrape.fresh(daemon).value("bockd_export_clients", export="gone") == 1
    daemon.wait_until_unused("gone")
    before = Scrape.fresh(daemon)
    assert before.values("bockd_export_operation_seconds_count", export="gone") == [7]
    daemon.bock("volume", "delete", "gone")
    after = Scrape.fresh(daemon)
    assert "gone" not in after.text
    assert after.value("bockd_operations_total", operation="write") == 7
    assert after.value("bockd_operation_seconds_count", operation="write") == 7
    assert after.value("bockd_operation_bytes_total", operation="write") == 7 * 4096
    assert after.value("bockd_pool_volumes") == 0


def test_what_waits_for_limits_is_counted(daemon: Bockd) -> None:
    daemon.bock("volume", "create", "held", "--size", "1M")
    daemon.bock("volume", "limit", "held", "--bps", "1")  # the first read owes for an hour
    with daemon.connected("held") as client:
        client.pread(4096, 0)
        first = Scrape.fresh(daemon)
        for _ in range(2):
            client.aio_pread(nbd.Buffer(4096), 0)
        while (held := Scrape.fresh(daemon)).value("bockd_requests_held", limits="volume") < 2:
            pass
        later = Scrape.fresh(daemon)
        daemon.bock("volume", "limit", "held", "--none")
        while client.aio_in_flight():
            client.poll(-1)
    after = Scrape.fresh(daemon)
    scrapes = (first, held, later, after)
    for name in ("bockd_held", "bockd_export_held"):
        requests = f"{name}_requests_total"
        assert [one.value(requests, limits="volume") for one in scrapes] == [0, 2, 2, 2]
        assert [one.value(requests, limits="tenant") for one in scrapes] == [0, 0, 0, 0]
        waited = [one.value(f"{name}_seconds_total", limits="volume") for one in scrapes]
        assert waited == sorted(set(waited))  # also while they wait
    assert after.value("bockd_requests_held", limits="volume") == 0
    assert after.value("bockd_export_bytes_total", export="held", operation="read") == 3 * 4096
    daemon.wait_until_unused("held")
    daemon.bock("volume", "delete", "held")
    assert Scrape.fresh(daemon).value("bockd_held_requests_total", limits="volume") == 2


def test_limits_and_profiles_that_hold_are_shown(daemon: Bockd) -> None:
    operations, moved = (f"bockd_export_limit_{one}_per_second" for one in ("operations", "bytes"))
    of_tenant = "bockd_tenant_limit_operations_per_second"
    daemon.bock("volume", "create", "one", "--size", "1M")
    daemon.bock("volume", "create", "other", "--size", "1M")
    with daemon.connected("one"), daemon.connected("other"):
        before = Scrape.fresh(daemon)
        daemon.bock("volume", "limit", "one", "--iops", "20", "--write-bps", "1MiB")
        daemon.bock("volume", "profile", "other", "ssd-sata")
        held = Scrape.fresh(daemon)
        daemon.bock("tenant", "limit", "demo", "--read-iops", "30")
        daemon.bock("volume", "limit", "one", "--none")
        daemon.bock("volume", "profile", "other", "--off")
        after = Scrape.fresh(daemon)
    counts = [
        (one.value("bockd_exports_limited"), one.value("bockd_exports_profiled"))
        for one in (before, held, after)
    ]
    assert counts == [(0, 0), (1, 1), (2, 0)]
    for none in (before, after):
        assert none.values(operations) == none.values(moved) == []
        assert none.values("bockd_export_profile_info") == []
    assert held.values(operations) == held.values(operations, export="one", operation="all") == [20]
    assert held.values(moved) == held.values(moved, export="one", operation="write") == [MIB]
    profiled = {"export": "other", "profile": "ssd-sata"}
    assert held.values("bockd_export_profile_info") == [1]
    assert held.values("bockd_export_profile_info", **profiled) == [1]
    (tenant,) = after.label("bockd_export_info", "tenant")
    assert before.values(of_tenant) == held.values(of_tenant) == []
    assert after.values(of_tenant) == [30]
    assert after.values(of_tenant, tenant=tenant, operation="read") == [30]


def test_only_so_many_exports_have_series(tmp_path: Path) -> None:
    """Those with clients come first; the others are in the sums."""
    config = tmp_path / "bockd.toml"
    config.write_text("[metrics]\nexports = 2\n")
    with serving(tmp_path / "pool", config=config) as daemon:
        for number in range(4):
            daemon.bock("volume", "create", f"v{number}", "--size", "1M")
            with daemon.connected(f"v{number}") as client:
                client.pread(4096, 0)
            daemon.wait_until_unused(f"v{number}")
        first = Scrape.fresh(daemon)
        assert first.label("bockd_export_info", "export") == {"v0", "v1"}
        assert first.value("bockd_exports_used") == 4
        assert first.value("bockd_exports_shown") == 2
        assert first.value("bockd_operations_total", operation="read") == 4
        with daemon.connected("v3") as client:
            client.pread(4096, 0)
            second = Scrape.fresh(daemon)
        assert second.label("bockd_export_info", "export") == {"v0", "v3"}
        assert second.values("bockd_export_operation_seconds_count", export="v3") == [2]
        assert second.value("bockd_operations_total", operation="read") == 5


def test_an_attachment_is_shown_as_its_volume(tmp_path: Path) -> None:
    """Its own name is a secret that lets in whoever knows it."""
    with serving(tmp_path / "pool", nbd_listen="127.0.0.1:0") as daemon:
        daemon.bock("volume", "create", "kept", "--size", "1M")
        daemon.bock("server", "add", "host", "--kind", "host")
        uri = daemon.bock("attachment", "create", "kept", "host")["unix_uri"]
        secret, _ = split_export_uri(uri)
        with daemon.connected(secret) as client:
            client.pread(4096, 0)
            found = Scrape.fresh(daemon)
        assert found.label("bockd_export_info", "export") == {"kept"}
        assert secret not in found.text


@pytest.mark.needs("files")
def test_checkpoints_and_their_journal_are_counted(daemon: Bockd) -> None:
    daemon.bock("volume", "create", "one", "--size", "1M")
    with daemon.connected("one") as client:
        client.pwrite(b"x" * 4096, 0)
        assert Scrape.fresh(daemon).value("bockd_local_open_volumes") == 1
    daemon.bock("volume", "show", "one")
    daemon.bock("snapshot", "create", "one", "s")  # applies what the journal has
    found = Scrape.fresh(daemon)
    assert found.value("bockd_local_journal_bytes_total") > 0
    assert found.value("bockd_local_damaged_blocks") == 0
    assert found.value("bockd_pool_snapshots") == 1


def test_the_listener_has_the_three_paths_and_nothing_else(tmp_path: Path) -> None:
    with serving(tmp_path / "pool", metrics_listen="127.0.0.1:0") as daemon:
        assert httpx.get(f"{daemon.metrics_url}/healthz").text == "alive\n"
        assert httpx.get(f"{daemon.metrics_url}/readyz").text == "ready\n"
        assert Scrape(httpx.get(f"{daemon.metrics_url}/metrics").text).value("bockd_ready") == 1
        assert httpx.post(f"{daemon.metrics_url}/metrics").status_code == 405
        for path in ("/control/v1/info", "/control/v1/volumes", "/v1.1/", "/v2.0/tokens", "/"):
            assert httpx.get(f"{daemon.metrics_url}{path}").status_code == 404


def test_by_default_there_is_no_listener(daemon: Bockd) -> None:
    (line,) = [line for line in daemon.announced if "metrics:" in line]
    assert line.split() == ["metrics:", "off"]
