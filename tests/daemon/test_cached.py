"""Daemons that serve a pool in a Ceph cluster, with `[cache]`: docs/cache.md."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bockd.config.rbd import RbdSettings
from bockd.model import MIB
from tests.daemon.process import Bockd
from tests.drivers.rbd.running import configuration

Start = Callable[[str, Path], Bockd]


@pytest.fixture
def gateway(
    rbd_namespace: RbdSettings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Start]:
    """Makes a gateway of one pool, by its name and the directory of its cache; it is not
    started."""
    made: list[Bockd] = []

    def make(name: str, cache: Path) -> Bockd:
        directory = tmp_path_factory.mktemp(name)
        config = directory / "bockd.toml"
        text = configuration(replace(rbd_namespace, gateway=name), directory / "data")
        config.write_text(f'{text}\n[cache]\ndirectory = "{cache}"\nsize_gib = 1\n')
        made.append(
            Bockd(directory / "data", directory / "log", api_listen="127.0.0.1:0", config=config)
        )
        return made[-1]

    yield make
    for one in made:
        one.end()


def cached_bytes(cache: Path) -> int:
    """What the files of a cache take."""
    return sum(one.stat().st_blocks * 512 for one in cache.glob("*.blocks"))


def test_what_clients_read_is_what_they_wrote(gateway: Start, tmp_path: Path) -> None:
    """Whatever is cached, before and after a restart, and after the daemon was killed."""
    cache = tmp_path / "cache"
    daemon = gateway("gw1", cache).start()
    daemon.bock("volume", "create", "disk", "--size", "8MiB")
    chance, content = random.Random(1), bytearray(8 * MIB)
    for end in ("stop", "kill", "stop"):
        with daemon.connected("disk") as client:
            for _ in range(150):
                offset = 512 * chance.randrange(len(content) // 512 - 64)
                length = 512 * chance.randint(1, 64)
                if chance.random() < 0.4:
                    data = chance.randbytes(length)
                    content[offset : offset + length] = data
                    client.pwrite(data, offset)
                else:
                    assert client.pread(length, offset) == content[offset : offset + length]
        assert cached_bytes(cache) > 0
        getattr(daemon, end)()
        assert bool(list(cache.glob("*.map"))) == (end == "stop")
        daemon.start()
        with daemon.connected("disk") as client:
            for offset in range(0, len(content), MIB):
                assert client.pread(MIB, offset) == content[offset : offset + MIB]
    daemon.stop()


def test_a_volume_moves_between_gateways_with_caches(gateway: Start, tmp_path: Path) -> None:
    one = gateway("gw1", tmp_path / "one").start()
    other = gateway("gw2", tmp_path / "other").start()
    one.bock("volume", "create", "disk", "--size", "1MiB")
    for number in range(1, 7):
        daemon = (one, other)[number % 2]
        with daemon.connected("disk") as client:
            if number > 1:
                assert client.pread(8192, 0) == bytes([number - 1]) * 4096 + bytes(4096)
            client.pwrite(bytes([number]) * 4096, 0)
            for _ in range(3):
                assert client.pread(8192, 0) == bytes([number]) * 4096 + bytes(4096)
        daemon.wait_until_unused("disk")
    one.stop()
    other.stop()


def test_a_second_daemon_is_refused_the_same_cache(gateway: Start, tmp_path: Path) -> None:
    one = gateway("gw1", tmp_path / "cache").start()
    said = gateway("gw2", tmp_path / "cache").refusal_to_start()
    assert f"another daemon uses the cache in {tmp_path / 'cache'}" in said
    one.stop()
