"""The log as JSON: one object to a line, with what the line is about in fields of their own."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from bockd import logcontext
from bockd.daemon.logs import JsonFormatter, LineCounts
from bockd.errors import NoSpaceError
from bockd.failurelog import FailureLog
from tests.daemon.metrics.scraping import Scrape
from tests.daemon.process import Bockd, serving
from tests.nbd.protocol import wire


class Lines(logging.Handler):
    """Keeps what it would write."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        assert "\n" not in line
        self.lines.append(json.loads(line))


@pytest.fixture
def written(caplog: pytest.LogCaptureFixture) -> Lines:
    """What is logged in the test."""
    del caplog  # which has the root logger's level put back
    lines = Lines()
    logging.getLogger().addHandler(lines)
    return lines


@pytest.fixture(autouse=True)
def _remove_handlers() -> Any:
    before = list(logging.getLogger().handlers)
    yield
    logging.getLogger().handlers[:] = before


log = logging.getLogger("bockd.some.part")


def test_a_line_is_an_object_with_time_level_logger_and_message(written: Lines) -> None:
    log.warning('a "quoted" %s\nin two lines \N{SNOWMAN}', "text")
    (line,) = written.lines
    assert datetime.fromisoformat(line.pop("time")).tzinfo is not None
    assert line == {
        "level": "warning",
        "logger": "bockd.some.part",
        "message": 'a "quoted" text\nin two lines \N{SNOWMAN}',
    }


def test_an_exception_is_a_field(written: Lines) -> None:
    try:
        raise ValueError("wrong")
    except ValueError:
        log.exception("it failed")
    (line,) = written.lines
    assert line["message"] == "it failed"
    assert line["exception"].endswith("ValueError: wrong")


def test_what_a_task_has_noted_is_in_its_lines_and_its_childrens_alone(written: Lines) -> None:
    async def child() -> None:
        await trio.to_thread.run_sync(log.warning, "in a thread of the child")

    async def client(number: int) -> None:
        logcontext.note(logcontext.CONNECTION, number)
        logcontext.note(logcontext.VOLUME, 10 * number)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client, 1)
            nursery.start_soon(client, 2)
        log.warning("outside")

    trio.run(main)
    *inside, outside = written.lines
    assert sorted((one["connection"], one["volume"]) for one in inside) == [
        ("1", "10"),
        ("2", "20"),
    ]
    assert "connection" not in outside


def test_a_failed_request_names_its_volume(written: Lines) -> None:
    FailureLog().note("volume 12", "write", NoSpaceError("the file system is full"))
    FailureLog().note("snapshot 7", "read", OSError(5, "Input/output error"))
    assert [(one.get("volume"), one.get("snapshot")) for one in written.lines] == [
        ("12", None),
        (None, "7"),
    ]


def test_lines_are_counted_by_level() -> None:
    counts = LineCounts()
    logging.getLogger().addHandler(counts)
    log.error("one")
    log.error("two")
    log.warning("three")
    (family,) = counts.families()
    found = {one.labels["level"]: one.value for one in family.samples}
    assert found == {"debug": 0, "info": 0, "warning": 1, "error": 2, "critical": 0}


def lines_of(daemon: Bockd) -> list[dict[str, Any]]:
    return [json.loads(line) for line in daemon.log.read_text().splitlines()]


def test_a_daemon_logs_json_with_request_tenant_connection_and_volume(tmp_path: Path) -> None:
    config = tmp_path / "bockd.toml"
    config.write_text('log_level = "debug"\n[log]\nformat = "json"\n')
    with serving(tmp_path / "pool", api_listen="127.0.0.1:0", config=config) as daemon:
        daemon.expect_in_log('"level": "debug"')
        daemon.bock("volume", "create", "disk1", "--size", "1M")
        tenant = daemon.bock("credentials")["tenant_id"]
        with daemon.connected("disk1") as client:
            client.pread(4096, 0)
        with daemon.storage() as storage:
            token = storage.token
        url = f"{daemon.api_url}/v1.1/{tenant}/os-volumes/4711"
        answer = httpx.get(url, headers={"X-Auth-Token": token})
        assert answer.status_code == 404
        request_id = answer.headers["x-openstack-request-id"]
        assert request_id.startswith("req-")
        refused = httpx.get(url)
        assert refused.status_code == 401
        assert refused.headers["x-openstack-request-id"] != request_id
        # One that is refused leaves the token as good as it was.
        revoking = f"{daemon.api_url}/v2.0/tokens/{token}%0A"
        assert not httpx.delete(revoking, headers={"X-Auth-Token": token}).is_success
        assert Scrape.fresh(daemon).value("bockd_log_lines_total", level="debug") > 0
    (line,) = [one for one in lines_of(daemon) if one.get("request_id") == request_id]
    assert line["tenant"] == tenant
    assert line["message"].startswith(f"GET /v1.1/{tenant}/os-volumes/4711: 404 in ")
    assert token not in daemon.log.read_text()


def test_a_client_that_breaks_the_rules_is_named_by_connection_and_volume(tmp_path: Path) -> None:
    config = tmp_path / "bockd.toml"
    config.write_text('[log]\nformat = "json"\n')
    with serving(tmp_path / "pool", config=config) as daemon:
        volume = daemon.bock("volume", "create", "disk1", "--size", "1M")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(daemon.nbd_socket))
            greeting = wire.FIXED_NEWSTYLE_NO_ZEROES + wire.go("disk1")
            client.sendall(greeting + b"no request at all" * 4)
            while client.recv(4096):
                pass
        daemon.wait_until_unused("disk1")
    (line,) = [one for one in lines_of(daemon) if "closed a client" in one["message"]]
    assert (line["connection"], line["volume"]) == ("1", str(volume["id"]))


CRASHES = {
    "the main thread": "raise ValueError('wrong\\n\\x1b[31m\\u202e')",
    "another thread": "t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()",
    "a finalizer": "type('Broken', (), {'__del__': lambda _: 1 / 0})()",
    "a warning": "warnings.warn('take care\\n\\x1b[31m', stacklevel=1)",
    "a message": "logging.getLogger('x').error('a name\\n\\x1b[31m\\u202e')",
    "a traceback": "try: raise ValueError('a name\\x1b[31m')\n"
    "except ValueError: logging.getLogger('x').exception('it failed')",
}


def said(crash: str, log_format: str) -> list[str]:
    """What a process that logs as a daemon does writes to standard error, line by line."""
    code = (
        "import logging, threading, warnings\n"
        "from bockd.config import Settings\n"
        "from bockd.config.sections import LogFormat, LogSettings\n"
        "from bockd.daemon import logs\n"
        f"logs.begin(Settings(log=LogSettings(LogFormat({log_format!r}))))\n"
        f"{CRASHES[crash]}\n"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "always", "-c", code], capture_output=True, check=False
    )
    assert ended.returncode == (1 if crash == "the main thread" else 0)
    return ended.stderr.decode().splitlines()


@pytest.mark.parametrize("crash", CRASHES)
def test_all_that_python_says_is_one_object(crash: str) -> None:
    (line,) = said(crash, "json")
    found = json.loads(line)
    assert {"time", "level", "logger", "message"} <= found.keys()
    is_error = crash not in ("a warning", "a message")
    assert ("Error" in found.get("exception", "")) is is_error


@pytest.mark.parametrize("crash", CRASHES)
def test_no_line_of_text_holds_what_a_terminal_obeys(crash: str) -> None:
    first, *traceback = said(crash, "text")
    assert first.split(" ")[0] in ("WARNING", "ERROR", "CRITICAL")
    assert all(line.isprintable() for line in (first, *traceback))
    assert bool(traceback) is (crash not in ("a warning", "a message"))
