"""The Unix socket of the API: who may use it, and what happens to one that is there already."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path

import httpx
import pytest
import trio

from api.app import create_app
from api.serve import serve_api
from bockd.errors import BockdError, ConflictError, InUseError, InvalidRequestError
from bockd.model import NodeKind

from .memory_control import MemoryControl
from .memory_images import MemoryImages


async def answers(path: Path) -> bool:
    """Whether the control API answers on `path`."""
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    async with httpx.AsyncClient(transport=transport) as client:
        return (await client.get("http://bockd/control/v1/info")).is_success


def serve_briefly(tmp_path: Path, path: Path) -> os.stat_result:
    """Serve on `path`, see that it answers, stop; returns what the socket file was meanwhile."""

    async def run() -> os.stat_result:
        async with trio.open_nursery() as nursery:
            app = create_app(MemoryControl(tmp_path), MemoryImages())
            await nursery.start(serve_api, app, path)
            assert await answers(path)
            found = path.lstat()
            nursery.cancel_scope.cancel()
        return found

    return trio.run(run)


def start_only(tmp_path: Path, path: Path) -> None:
    """Start serving on `path` and stop; raises what starting raises."""

    async def run() -> None:
        with trio.move_on_after(0):
            await serve_api(create_app(MemoryControl(tmp_path), MemoryImages()), path)

    trio.run(run)


def test_only_the_owner_may_connect_and_the_file_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    umask = os.umask(0)
    try:
        found = serve_briefly(tmp_path, path)
    finally:
        os.umask(umask)
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert not path.exists()


def test_socket_of_a_dead_daemon_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    stale = path.lstat()
    found = serve_briefly(tmp_path, path)
    assert (found.st_ino, found.st_ctime_ns) != (stale.st_ino, stale.st_ctime_ns)


@pytest.mark.parametrize("backlog_full", [False, True])
def test_socket_of_a_live_daemon_is_left_alone(tmp_path: Path, backlog_full: bool) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as live, socket.socket(socket.AF_UNIX) as waiting:
        live.bind(str(path))
        live.listen(0)
        if backlog_full:
            waiting.connect(str(path))
        with pytest.raises(InUseError, match="another process listens"):
            start_only(tmp_path, path)
        assert path.exists()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    path.write_text("mine")
    with pytest.raises(ConflictError, match="not a socket"):
        start_only(tmp_path, path)
    assert path.read_text() == "mine"


def test_a_path_that_no_socket_can_have(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="shorter data directory"):
        start_only(tmp_path, tmp_path / ("long" * 30) / "api.sock")
    with pytest.raises(BockdError, match="listening on"):
        start_only(tmp_path, tmp_path / "nowhere" / "api.sock")


def test_shutdown_lets_a_request_finish(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"

    async def run() -> None:
        asked, stop = trio.Event(), trio.Event()

        class SlowControl(MemoryControl):
            async def adopt(self, kind: NodeKind, ref: str, tenant: str) -> None:
                asked.set()
                await stop.wait()
                await super().adopt(kind, ref, tenant)

        control = SlowControl(tmp_path)
        control.add_volume("web")
        app = create_app(control, MemoryImages())
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport) as client, trio.open_nursery() as nursery:
            await nursery.start(
                lambda task_status: serve_api(
                    app, path, shutdown=stop.wait, task_status=task_status
                )
            )
            async with trio.open_nursery() as requests:
                requests.start_soon(stop_when, asked, stop)
                url = "http://bockd/control/v1/volumes/web/adopt"
                answer = await client.post(url, json={"tenant": "demo"})
            assert answer.status_code == 204
            await client.aclose()
        assert control.owners == {1: "demo"}

    trio.run(run)


async def stop_when(asked: trio.Event, stop: trio.Event) -> None:
    """Begin the shutdown once a request is being served."""
    await asked.wait()
    stop.set()


def test_a_client_that_stops_reading_does_not_keep_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.connections.SEND_TIMEOUT_SECONDS", 0.1)
    path = tmp_path / "api.sock"

    async def run() -> None:
        control = MemoryControl(tmp_path)
        for number in range(3000):  # an answer larger than what the kernel buffers
            control.add_volume(f"volume{number}")
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_api, create_app(control, MemoryImages()), path)
            stuck = await trio.open_unix_socket(path)
            async with stuck:
                await stuck.send_all(b"GET /control/v1/volumes HTTP/1.1\r\nhost: x\r\n\r\n")
                await stuck.receive_some(100)
                assert await answers(path)
                nursery.cancel_scope.cancel()

    trio.run(run)


def test_garbage_is_refused_and_others_do_not_notice(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(
                serve_api, create_app(MemoryControl(tmp_path), MemoryImages()), path
            )
            for garbage in (
                b"\r\n\r\n",
                bytes(range(256)) * 16,
                b"GET / HTTP/9.9\r\n\r\n",
                b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
                b"GET / HTTP/1.1\r\n" + b"a: " + b"b" * 100_000,
                b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
                b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64,
            ):
                async with await trio.open_unix_socket(path) as stream:
                    with contextlib.suppress(trio.BrokenResourceError):
                        await stream.send_all(garbage)
                        await stream.send_eof()
                        while await stream.receive_some():
                            pass
                assert await answers(path)
            nursery.cancel_scope.cancel()

    trio.run(run)


def test_a_connection_serves_as_long_as_its_client_asks(tmp_path: Path) -> None:
    """`bock stat` asks several times a second, for days."""
    path = tmp_path / "api.sock"
    ask = b"GET /control/v1/info HTTP/1.1\r\nhost: x\r\n\r\n"

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            app = create_app(MemoryControl(tmp_path), MemoryImages())
            await nursery.start(serve_api, app, path)
            stream = await trio.open_unix_socket(path)
            async with stream:
                for _ in range(1100):
                    await stream.send_all(ask)
                    answer = b""
                    while not answer.endswith(b"}"):
                        more = await stream.receive_some()
                        assert more
                        answer += more
                    assert b"connection: close" not in answer.lower()
            nursery.cancel_scope.cancel()

    trio.run(run)
