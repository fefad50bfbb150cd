"""A daemon that is attacked, with volumes for the attackers and for those who are innocent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.attach.tenant import Tenant
from tests.daemon.process import Bockd, serving
from tests.hostile.innocent import BLOCK, Innocent, innocent
from tests.hostile.leaks import nothing_leaks
from tests.hostile.live import Address
from tests.hostile.sessions import KIB, MIB, Target
from tests.tls.conftest import Pki, make_pki

VOLUME_BYTES = 8 * MIB
REACH_BYTES = 2 * MIB
"""Attackers change what lies below; above, an innocent client has its area."""
TOP_BYTES = 64 * KIB
"""Left alone at the end of the volume, whose edge is the attackers' too."""


@dataclass(frozen=True)
class Attacked:
    """The daemon, its frontends, and the export behind them that attackers know."""

    daemon: Bockd
    target: Target
    innocents: tuple[Innocent, ...]
    """One on the attacked volume, in an area of its own; one on another volume, which leaves and
    comes again."""

    @property
    def frontends(self) -> dict[str, Address]:
        return {"unix": self.daemon.nbd_socket, "tcp": ("127.0.0.1", self.daemon.nbd_port)}

    @property
    def unix(self) -> Address:
        return self.daemon.nbd_socket

    @contextmanager
    def under_attack(self) -> Iterator[None]:
        """For the length of an attack: at its end the innocent clients have had their service, and
        the daemon holds no more than it held before."""
        with nothing_leaks(self.daemon):
            for client in self.innocents:
                client.period()
            yield
            for client in self.innocents:
                client.check()


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return make_pki(tmp_path_factory.mktemp("certificates") / "all")


@pytest.fixture(scope="package")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    """For all tests here; at the end it must stop well, with nothing odd in its log."""
    pool = tmp_path_factory.mktemp("hostile") / "pool"
    here = "127.0.0.1:0"
    with serving(pool, nbd_listen=here, api_listen=here, is_forked=False) as daemon:
        size = f"{VOLUME_BYTES // KIB}K"
        volume = daemon.bock("volume", "create", "attacked", "--size", size)["id"]
        daemon.bock("volume", "create", "elsewhere", "--size", size)
        name = Tenant(daemon).attach(volume).export
        path = daemon.nbd_socket
        blocks = (VOLUME_BYTES - REACH_BYTES - TOP_BYTES) // BLOCK
        with (
            innocent(path, name, REACH_BYTES // BLOCK, blocks) as neighbour,
            innocent(path, "elsewhere", 0, 256, reconnect=True) as other,
        ):
            target = Target(name, VOLUME_BYTES, REACH_BYTES)
            yield Attacked(daemon, target, (neighbour, other))
        daemon.stop()
        assert "Traceback" not in daemon.log.read_text()
