"""What other gateways are told of where a daemon is reached."""

from __future__ import annotations

import socket
from contextlib import closing
from dataclasses import replace

from bockd.config import Address, Settings
from bockd.daemon.addresses import addresses
from bockd.model import TlsMode
from bockd.nbd.server.listener import address_of, listen_tcp
from bockd.pool.gateways import Addresses

SETTINGS = Settings()


def test_nothing_over_tcp() -> None:
    assert addresses(SETTINGS, None, None) == Addresses()


def test_the_ports_that_the_kernel_chose() -> None:
    with (
        closing(listen_tcp(Address("127.0.0.1", 0))) as nbd,
        closing(listen_tcp(Address("0.0.0.0", 0))) as api,
    ):
        found = addresses(SETTINGS, nbd, api)
        assert found.nbd == str(address_of(nbd))
        assert not found.nbd_tls
        # One that listens everywhere is reached by the machine's name.
        assert found.api == f"http://{socket.gethostname()}:{address_of(api).port}/"


def test_tls() -> None:
    settings = replace(
        SETTINGS,
        nbd=replace(SETTINGS.nbd, tls=TlsMode.REQUIRE),
        api=replace(SETTINGS.api, tls=TlsMode.ON),
    )
    with closing(listen_tcp(Address("127.0.0.1", 0))) as one:
        found = addresses(settings, one, one)
    assert found.nbd_tls
    assert found.api is not None
    assert found.api.startswith("https://127.0.0.1:")
