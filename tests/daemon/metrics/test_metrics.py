"""The metrics of a whole daemon: what clients did is in them once, whichever way it was served."""

from __future__ import annotations

import subprocess
from pathlib import Path

import httpx
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
