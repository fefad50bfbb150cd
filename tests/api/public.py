"""The public API on a real TCP socket, for clients that know nothing of trio.

The server runs in a thread of its own; it and the service behind it end with the `with` block.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import trio

from api.openstack.app import create_public_app
from api.openstack.catalog import Catalog
from api.openstack.nbd import NbdFrontends
from api.serve import serve_public
from bockd.blockstorage.contract import BlockStorage
from bockd.blockstorage.service import PoolBlockStorage
from bockd.identity.contract import Identity

START_SECONDS = 30.0

ANSWER_SECONDS = 60.0
"""How long a client waits for an answer. The machine may be busy with other tests, and a cluster
with it; httpx waits 5 s by default."""


@dataclass(frozen=True)
class Account:
    """Somebody who may ask for tokens."""

    username: str
    password: str
    access_key: str
    secret_key: str
    tenant_id: str
    tenant_name: str

    def auth(self) -> dict[str, Any]:
        """The body of POST /v2.0/tokens."""
        credentials = {"username": self.username, "password": self.password}
        return {"auth": {"passwordCredentials": credentials, "tenantId": self.tenant_id}}


@dataclass(frozen=True)
class Service:
    """What is served, and two accounts in different tenants."""

    storage: BlockStorage
    identity: Identity
    account: Account
    stranger: Account


Opening = Callable[[], AbstractAsyncContextManager[Service]]


@dataclass(frozen=True)
class Served:
    """A public API that answers at `url`."""

    url: str
    service: Service

    @contextmanager
    def client(self, account: Account | None = None) -> Iterator[httpx.Client]:
        """A client whose requests carry a token of `account`, and whose paths begin in its
        tenant."""
        chosen = account or self.service.account
        with httpx.Client(base_url=self.url, timeout=ANSWER_SECONDS) as open_client:
            answer = open_client.post("/v2.0/tokens", json=chosen.auth())
        assert answer.status_code == 200, answer.text
        with httpx.Client(
            base_url=f"{self.url}/v1.1/{chosen.tenant_id}",
            headers={"X-Auth-Token": answer.json()["access"]["token"]["id"]},
            timeout=ANSWER_SECONDS,
        ) as client:
            yield client


def always(service: Service) -> Opening:
    """A service that needs no opening."""

    @asynccontextmanager
    async def opening() -> AsyncIterator[Service]:
        yield service

    return opening


@contextmanager
def serving(
    opening: Opening,
    catalog: Catalog | None = None,
    nbd_frontends: NbdFrontends | None = None,
) -> Iterator[Served]:
    """Serve what `opening` opens on a free port."""
    started = threading.Event()
    running: list[Service] = []
    stops: list[Callable[[], None]] = []

    async def main() -> None:
        stop, token = trio.Event(), trio.lowlevel.current_trio_token()
        stops.append(lambda: token.run_sync_soon(stop.set))
        async with opening() as service:
            running.append(service)
            kept = service.storage
            trash = kept.trash if isinstance(kept, PoolBlockStorage) else None
            app = create_public_app(kept, service.identity, catalog, nbd_frontends, trash=trash)
            started.set()
            await serve_public(app, listener, shutdown=stop.wait)

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as threads:
        listener.setblocking(False)
        finished = threads.submit(trio.run, main)
        finished.add_done_callback(lambda _: started.set())
        assert started.wait(START_SECONDS)
        try:
            if running:
                yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", running[0])
        finally:
            if not finished.done():
                stops[0]()
            finished.result()


def without_ours(view: dict[str, Any]) -> dict[str, Any]:
    """An attachment as the documents have it: without our extra key, which must be there."""
    assert view["bockd"]["export"]
    return {key: value for key, value in view.items() if key != "bockd"}


def fault_of(answer: httpx.Response) -> tuple[int, str, str]:
    """Status, name and message, from a body that is a fault and nothing else."""
    assert answer.headers["content-type"] == "application/json"
    ((name, detail),) = answer.json().items()
    limited = {"retryAfter"} if name == "overLimit" else set()
    assert detail.keys() == {"message", "code"} | limited
    assert detail["code"] == answer.status_code
    return answer.status_code, name, detail["message"]
