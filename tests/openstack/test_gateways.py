"""What clients are told of gateways: who has a volume open, and a way in by each of them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from starlette.requests import Request

from api.openstack.nbd import NbdFrontends
from bockd.blockstorage.running import NoPublisher, StorageContext
from bockd.blockstorage.service import PoolBlockStorage
from bockd.config import Address
from bockd.drivers.memory.pool import MemoryPool
from bockd.identity.accounts import Accounts
from bockd.identity.local import LocalIdentity
from bockd.model import VolumeId
from bockd.pool.gateways import Addresses, Gateway
from bockd.runtime.steprunner import StepRunner

from ..api.public import Served, Service, serving
from .pool_service import new_account
from .requests import attach, create, show, snapshot

FRONTENDS = NbdFrontends("/run/nbd.sock", Address("0.0.0.0", 10809), gateway="b")

HERE = Gateway(name="b", run="1", since=1.0, addresses=Addresses(nbd="b.example:10809"))
OTHERS = [
    Gateway(name="a", run="2", since=2.0, addresses=Addresses(nbd="a.example:1", nbd_tls=True)),
    Gateway(name="c", run="3", since=3.0, addresses=Addresses(nbd="[fd00::3]:3")),
    Gateway(name="mute", run="4", since=4.0),
]


@pytest.fixture
def pool() -> MemoryPool:
    return MemoryPool()


@pytest.fixture
def served(pool: MemoryPool) -> Iterator[Served]:
    @asynccontextmanager
    async def opening() -> AsyncIterator[Service]:
        accounts = Accounts(pool.index)
        runner = StepRunner()
        yield Service(
            PoolBlockStorage(StorageContext(pool, NoPublisher()), runner),
            LocalIdentity(pool.index, runner, time.time, b"k" * 32),
            new_account(accounts, "demo"),
            new_account(accounts, "other"),
        )

    with serving(opening, nbd_frontends=FRONTENDS) as one:
        yield one


@pytest.fixture
def several(pool: MemoryPool) -> MemoryPool:
    """The pool, with gateways."""
    pool.gateway = "b"
    pool.known_gateways = sorted([HERE, *OTHERS], key=lambda one: one.name)
    return pool


def test_of_one_daemon_nothing_is_said(served: Served) -> None:
    with served.client() as client:
        volume = create(client)
        assert "gateway" not in volume["bockd"]
        ours = attach(client, volume["id"]).json()["volumeAttachment"]["bockd"]
        assert "uris" not in ours
        assert ours["uri"] == f"nbd://127.0.0.1:10809/{ours['export']}"
        assert "gateway" not in show(client, volume["id"])["bockd"]


def test_who_has_a_volume_open(served: Served, several: MemoryPool) -> None:
    with served.client() as client:
        volume = create(client)
        assert volume["bockd"]["gateway"] is None
        several.holders[VolumeId(volume["id"])] = "c"
        assert show(client, volume["id"])["bockd"]["gateway"] == "c"
        listed = client.get("/os-volumes/detail").json()["volumes"]
        assert [one["bockd"]["gateway"] for one in listed] == ["c"]
        assert "gateway" not in snapshot(client, volume["id"]).json()["snapshot"]["bockd"]


@pytest.mark.parametrize(
    ("holder", "order"),
    [(None, "bac"), ("b", "bac"), ("a", "abc"), ("c", "cab"), ("mute", "abc"), ("gone", "bac")],
)
def test_the_ways_in(served: Served, several: MemoryPool, holder: str | None, order: str) -> None:
    """First by the holder; this gateway by the address that it was asked at."""
    with served.client() as client:
        volume = create(client)
        if holder is not None:
            several.holders[VolumeId(volume["id"])] = holder
        for answer in (
            attach(client, volume["id"]),
            client.get(f"/servers/1/os-volume_attachments/{volume['id']}"),
        ):
            ours = answer.json()["volumeAttachment"]["bockd"]
            export = ours["export"]
            ways = {
                "a": f"nbds://a.example:1/{export}",
                "b": f"nbd://127.0.0.1:10809/{export}",
                "c": f"nbd://[fd00::3]:3/{export}",
            }
            assert ours["uris"] == [ways[name] for name in order]
            assert ours["uri"] == ours["uris"][0]
            assert ours["unix_uri"] == f"nbd+unix:///{export}?socket=/run/nbd.sock"


@pytest.mark.parametrize("place", ["127.0.0.1:5", "[::1]:5", "localhost:5"])
def test_no_way_leads_to_another_machines_loopback_address(
    served: Served, several: MemoryPool, place: str
) -> None:
    several.known_gateways.append(replace(OTHERS[0], name="d", addresses=Addresses(nbd=place)))
    with served.client() as client:
        volume = create(client)
        several.holders[VolumeId(volume["id"])] = "d"
        ours = attach(client, volume["id"]).json()["volumeAttachment"]["bockd"]
        assert len(ours["uris"]) == 3
        assert place not in "".join(ours["uris"])
        assert ours["uri"] == ours["uris"][0]


@pytest.mark.parametrize(("listen", "count"), [("127.0.0.1", 2), ("10.0.0.1", 1)])
def test_of_gateways_on_one_machine_both_are_told(listen: str, count: int) -> None:
    frontends = NbdFrontends(listen=Address(listen, 1), gateway="b")
    other = replace(HERE, name="a", addresses=Addresses(nbd="127.0.0.1:2"))
    request = Request({"type": "http", "headers": []})
    ways = frontends.uris("x", [HERE, other], request)
    assert ways == [f"nbd://{listen}:1/x", "nbd://127.0.0.1:2/x"][:count]


def test_nobody_listens_on_tcp(served: Served, several: MemoryPool) -> None:
    several.known_gateways = [replace(one, addresses=Addresses()) for one in OTHERS]
    with served.client() as client:
        volume = create(client)
        ours = attach(client, volume["id"]).json()["volumeAttachment"]["bockd"]
        assert (ours["uri"], ours["uris"]) == (None, [])
