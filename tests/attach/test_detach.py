"""Detaching: what was acknowledged is there, and nothing lands afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbd
import pytest

from tests.attach.tenant import Attached, Tenant, connect, connected, is_refused
from tests.attach.writer import WRITE_BYTES
from tests.daemon.driver import IS_RBD
from tests.daemon.process import Bockd

MIB = 1 << 20
BLOCK = 4096
CLIENTS = 4
SLOTS = 64
"""Blocks that a writer goes round in."""

WAIT_SECONDS = 120.0
PROMPTLY_SECONDS = 8.0
"""Less than a detach that has to wait for a client takes (daemon.attached.DRAIN_SECONDS)."""


class Writer(threading.Thread):
    """Writes rising numbers into blocks of its own, several at once, until the connection ends.
    `acknowledged` has the last number that was answered for each block."""

    def __init__(self, uri: str, number: int) -> None:
        super().__init__(name=f"writer {number}")
        self.first_block = number * SLOTS
        self.acknowledged: dict[int, int] = {}
        self.busy = threading.Event()
        self.ended = False
        # Not `_handle`: since Python 3.13 a Thread keeps its own there.
        self._client = connect(uri)

    def run(self) -> None:
        handle: Any = self._client
        flying: dict[int, tuple[int, int]] = {}
        value = 0
        try:
            while True:
                while len(flying) < 16:
                    value += 1
                    block = self.first_block + value % SLOTS
                    buffer = nbd.Buffer.from_bytearray(bytearray(value.to_bytes(8, "big") * 512))
                    flying[handle.aio_pwrite(buffer, block * BLOCK)] = (block, value)
                handle.poll(-1)
                for cookie in list(flying):
                    if handle.aio_command_completed(cookie):
                        block, answered = flying.pop(cookie)
                        self.acknowledged[block] = answered
                if value > 500:
                    self.busy.set()
        except nbd.Error:
            self.ended = True


def content(daemon: Bockd, volume: int, blocks: int) -> list[int]:
    """The number in each block, as the operator reads it."""
    with daemon.connected(str(volume)) as client:
        data = client.pread(blocks * BLOCK, 0)
    return [int.from_bytes(data[at : at + 8], "big") for at in range(0, blocks * BLOCK, BLOCK)]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("way", ["uri", "unix_uri"])
def test_detach_under_load(daemon: Bockd, tenant: Tenant, way: str, force: bool) -> None:
    volume = tenant.create()
    attached = tenant.attach(volume)
    writers = [Writer(getattr(attached, way), number) for number in range(CLIENTS)]
    for writer in writers:
        writer.start()
    assert all(writer.busy.wait(WAIT_SECONDS) for writer in writers)
    begun = time.monotonic()
    tenant.detach(volume, force=force)
    took = time.monotonic() - begun
    at_return = content(daemon, volume, CLIENTS * SLOTS)
    for writer in writers:
        writer.join(WAIT_SECONDS)
        assert writer.ended
    assert content(daemon, volume, CLIENTS * SLOTS) == at_return
    for writer in writers:
        for block, value in writer.acknowledged.items():
            # A later write to the same block may have landed without its answer.
            assert at_return[block] >= value, block
            assert at_return[block] % SLOTS == value % SLOTS
    assert took < PROMPTLY_SECONDS
    assert tenant.show(volume)["status"] == "available"
    daemon.check()


@contextmanager
def half_a_write(attached: Attached) -> Iterator[subprocess.Popen[str]]:
    """A client that has sent half of a write."""
    command = [sys.executable, "-m", "tests.attach.writer", attached.uri]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "half\n"
            yield process
        finally:
            process.kill()


def go_on(process: subprocess.Popen[str]) -> str:
    """Let the client send the rest; what it says."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline()


@pytest.mark.parametrize("force", [False, True])
def test_half_a_write_of_a_stopped_client_never_lands(
    daemon: Bockd, tenant: Tenant, force: bool
) -> None:
    volume = tenant.create()
    attached = tenant.attach(volume)
    with half_a_write(attached) as stopped:
        os.kill(stopped.pid, signal.SIGSTOP)
        begun = time.monotonic()
        tenant.detach(volume, force=force)
        assert time.monotonic() - begun < PROMPTLY_SECONDS
        again = tenant.attach(volume, "web2")
        with connected(again.uri) as client:
            client.pwrite(b"new", 2 * WRITE_BYTES)
            os.kill(stopped.pid, signal.SIGCONT)
            assert go_on(stopped) == "ended, refused\n"
            assert client.pread(2 * WRITE_BYTES, 0) == bytes(2 * WRITE_BYTES)
            assert client.pread(3, 2 * WRITE_BYTES) == b"new"


def test_an_operators_connection_stays(daemon: Bockd, tenant: Tenant) -> None:
    volume = tenant.create("disk1")
    attached = tenant.attach(volume)
    server = connect(attached.unix_uri)
    with daemon.connected("disk1") as operator:
        server.pwrite(b"server", 0)
        assert tenant.attachment(volume)["bockd"]["connections"] == 1
        tenant.detach(volume)
        with pytest.raises(nbd.Error):
            server.pread(6, 0)
        assert operator.pread(6, 0) == b"server"
        operator.pwrite(b"operator", 0)
        assert tenant.show(volume)["status"] == "available"
    daemon.wait_until_unused("disk1")


def stuck(uri: str) -> Any:
    """A client that asks for much and takes no answer."""
    client = connect(uri)
    for _ in range(40):
        client.aio_pread(nbd.Buffer(MIB), 0)
    return client


def test_killed_in_the_middle_of_a_detach(daemon: Bockd, tenant: Tenant) -> None:
    volume = tenant.create()
    attached = tenant.attach(volume)
    with connected(attached.uri) as client:
        client.pwrite(b"kept", 0)
    hanging = stuck(attached.uri)
    if IS_RBD:  # the earlier run has it still
        daemon.expect_in_log("volume 1 was recalled by force")
    with ThreadPoolExecutor(1) as threads:
        detaching = threads.submit(tenant.try_detach, volume)
        deadline = time.monotonic() + WAIT_SECONDS
        while tenant.show(volume)["status"] != "detaching":
            assert time.monotonic() < deadline
            assert not detaching.done()
        assert is_refused(attached.uri)
        daemon.kill()
        assert detaching.exception() is not None
    daemon.start()
    del hanging
    tenant = Tenant(daemon)
    deadline = time.monotonic() + WAIT_SECONDS
    while (shown := tenant.show(volume))["status"] == "detaching":
        assert IS_RBD, "only where there may be other gateways it goes on after the start"
        assert time.monotonic() < deadline
    assert (shown["status"], shown["attachments"]) == ("available", [{}])
    assert is_refused(attached.unix_uri)
    with connected(tenant.attach(volume, "web2").uri) as client:
        assert client.pread(4, 0) == b"kept"


def test_a_client_that_takes_no_answers_is_cut_off(daemon: Bockd, tenant: Tenant) -> None:
    volume = tenant.create()
    for force in (True, False):
        hanging = stuck(tenant.attach(volume).uri)
        begun = time.monotonic()
        tenant.detach(volume, force=force)
        assert time.monotonic() - begun < (PROMPTLY_SECONDS if force else WAIT_SECONDS)
        assert tenant.show(volume)["status"] == "available"
        del hanging


def test_attaching_and_detaching_at_once(daemon: Bockd, tenant: Tenant) -> None:
    volumes = [tenant.create() for _ in range(2)]
    names: list[str] = []
    statuses: Counter[int] = Counter()

    def one(number: int) -> None:
        mine = Tenant(daemon)
        for turn in range(12):
            volume, server = volumes[turn % 2], f"web{number}"
            answer = mine.try_attach(volume, server)
            statuses[answer.status_code] += 1
            if answer.status_code != 200:
                assert "Invalid volume" in answer.text, answer.text
                continue
            extra = answer.json()["volumeAttachment"]["bockd"]
            names.append(extra["export"])
            with connected(extra["uri"]) as client:
                client.pwrite(server.encode(), 0)
                assert client.pread(len(server), 0) == server.encode()
            mine.detach(volume, server, force=bool(turn % 3))
            assert is_refused(extra["uri"])

    with ThreadPoolExecutor(6) as threads:
        for running in [threads.submit(one, number) for number in range(6)]:
            running.result()
    assert statuses[200] == len(names) == len(set(names)) >= len(volumes)
    assert [tenant.show(volume)["status"] for volume in volumes] == ["available"] * 2
    daemon.check()


def test_force_is_true_or_false(tenant: Tenant) -> None:
    volume = tenant.create()
    tenant.attach(volume)
    path = f"/servers/web1/os-volume_attachments/{volume}"
    answer = tenant.request("DELETE", f"{path}?force=perhaps")
    assert answer.status_code == 400
    assert tenant.show(volume)["status"] == "in-use"
    assert tenant.request("DELETE", f"{path}?force=false").status_code == 202
