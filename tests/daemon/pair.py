"""Two daemons, gateways of one pool in a Ceph cluster, for tests of what moves between them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest

from bockd.config.rbd import RbdSettings
from tests.daemon.process import Bockd
from tests.drivers.rbd.running import configuration

SERVER = "web1"
TAKEN = "another gateway has taken|was recalled by force"
NO_MANAGER = "whether it has an active manager"
"""The tests' cluster has none."""


@dataclass
class Pair:
    """Two gateways of a pool that has one volume, `disk`, attached to `web1`."""

    first: Bockd
    second: Bockd

    def uris(self, asked: Bockd | None = None) -> list[str]:
        """The ways in over TCP, as a gateway tells them."""
        shown = (asked or self.first).bock("attachment", "show", "disk")
        assert shown["uri"] == shown["uris"][0]
        found: list[str] = shown["uris"]
        return found

    def holder(self, asked: Bockd) -> str:
        """Which gateway has the volume open, as a gateway tells it."""
        found: str = asked.bock("volume", "show", "disk")["gateway"]
        return found


@contextmanager
def two_gateways(namespace: RbdSettings, directories: pytest.TempPathFactory) -> Iterator[Pair]:
    """Run two gateways of a new pool for the duration, with a volume attached. The second one has
    the credentials of the first."""
    made = [_gateway(replace(namespace, gateway=name), directories) for name in ("gw1", "gw2")]
    first, second = made
    try:
        for one in made:
            one.start()
            one.expect_in_log(TAKEN)
            one.expect_in_log(NO_MANAGER)
        credentials = (first.data_dir / "credentials.json").read_text()
        (second.data_dir / "credentials.json").write_text(credentials)
        first.bock("volume", "create", "disk", "--size", "8MiB")
        first.bock("attachment", "create", "disk", SERVER)
        yield Pair(first, second)
    finally:
        for one in made:
            one.end()


def _gateway(settings: RbdSettings, directories: pytest.TempPathFactory) -> Bockd:
    directory = directories.mktemp(settings.gateway_name)
    config = directory / "bockd.toml"
    config.write_text(configuration(settings, directory / "data"))
    return Bockd(
        directory / "data",
        directory / "log",
        nbd_listen="127.0.0.1:0",
        api_listen="127.0.0.1:0",
        config=config,
    )
