"""A real Prometheus takes the rules, scrapes a daemon, and has answers to the board's queries."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.daemon.metrics.test_documented import BOARD, RULES
from tests.daemon.process import Bockd, program, serving

CONFIG = RULES.with_name("prometheus.yml")

ANSWER_SECONDS = 120.0
"""For Prometheus to start and to scrape twice."""

EMPTY_HERE = re.compile(r"bockd_(cache|rbd|tokens)_")
"""Queries that have no answer here: of another kind of pool, or of what was not done."""


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", RULES),
        ("test", "rules", RULES.with_name("bockd.rules.test.yml")),
        ("check", "config", CONFIG),
    ],
)
def test_promtool_accepts_what_is_shipped(arguments: tuple[str | Path, ...]) -> None:
    said = subprocess.run(
        [program("promtool"), *arguments], capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stdout + said.stderr
    assert "SUCCESS" in said.stdout + said.stderr


class Prometheus:
    """One that scrapes every second."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get(self, path: str, **query: str) -> Any:
        """Return the data of an answer of its HTTP API."""
        answer = httpx.get(f"{self._url}/api/v1/{path}", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def query(self, expression: str) -> list[Any]:
        """Return the result of a query of this moment."""
        found: list[Any] = self.get("query", query=expression)["result"]
        return found


@contextmanager
def scraping(daemon: Bockd, directory: Path) -> Iterator[Prometheus]:
    """A Prometheus with the shipped configuration, but for the address and how often it asks."""
    target = daemon.metrics_url.removeprefix("http://")
    text = CONFIG.read_text().replace("127.0.0.1:9776", target).replace("15s", "1s")
    (directory / "prometheus.yml").write_text(text)
    (directory / RULES.name).write_text(RULES.read_text())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        yield Prometheus(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait()


def wait_for(prometheus: Prometheus, expression: str, directory: Path) -> list[Any]:
    """Ask until a query has an answer."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < deadline:
        try:
            if found := prometheus.query(expression):
                return found
        except httpx.TransportError:
            pass  # it is starting
    raise AssertionError(f"no answer to {expression}\n{(directory / 'log').read_text()}")


def queries() -> list[str]:
    """Those of the board, as Grafana asks them."""
    board = json.loads(BOARD.read_text())
    found = [target["expr"] for one in board["panels"] for target in one.get("targets", ())]
    for name, value in (("instance", ".*"), ("operation", "write"), ("__rate_interval", "1m")):
        found = [one.replace(f"${name}", value) for one in found]
    return found


def test_a_prometheus_scrapes_a_daemon(tmp_path: Path) -> None:
    with (
        serving(tmp_path / "pool", metrics_listen="127.0.0.1:0") as daemon,
        scraping(daemon, tmp_path) as prometheus,
    ):
        daemon.bock("volume", "create", "disk1", "--size", "1M")
        daemon.bock("volume", "limit", "disk1", "--iops", "100000", "--bps", "1GiB")
        with daemon.connected("disk1") as client:
            wait_for(prometheus, 'bockd_export_clients{export="disk1"} == 1', tmp_path)
            client.pwrite(b"x" * 4096, 0)
            client.flush()
            client.pread(4096, 0)
            wait_for(prometheus, 'bockd_operations_total{operation="read"} == 1', tmp_path)
            # Two scrapes that have it.
            count = 'bockd_export_operation_seconds_count{operation="read"}'
            wait_for(prometheus, f"rate({count}[1m])", tmp_path)
        (target,) = prometheus.get("targets")["activeTargets"]
        assert (target["health"], target["lastError"]) == ("up", "")
        (up,) = prometheus.query('up{job="bockd"}')
        assert up["value"][1] == "1"
        unanswered = [one for one in queries() if not prometheus.query(one)]
        assert [one for one in unanswered if not EMPTY_HERE.search(one)] == []
        (group,) = prometheus.get("rules")["groups"]
        assert {(rule["name"], rule["health"]) for rule in group["rules"]} == {
            (name, "ok") for name in re.findall(r"alert: (\w+)", RULES.read_text())
        }
