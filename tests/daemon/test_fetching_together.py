"""Two gateways that fetch the same image from Glance at once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest
import trio

from bockd.blockstorage.contract import NewImage
from bockd.blockstorage.records import ImageRecord
from bockd.config import Settings
from bockd.config.sections import GlanceSettings
from bockd.daemon import fetching
from bockd.daemon.fetching import FetchingBlockStorage
from bockd.daemon.glance import GlanceImage
from bockd.errors import ConflictError
from bockd.model import MIB
from bockd.runtime.steprunner import StepRunner
from tests.blockstorage.gateways import Gateway, World

IMAGE = GlanceImage("1234", "active", size=MIB, disk_format="raw", container_format="bare")


class FakeGlance:
    """Has one image, and gives it to all when so many have asked."""

    def __init__(self, askers: int) -> None:
        self._askers = askers
        self._all = trio.Event()

    async def download(self, image: GlanceImage, token: str, file: IO[bytes]) -> str:
        self._askers -= 1
        if not self._askers:
            self._all.set()
        await self._all.wait()
        data = bytes(MIB)
        file.write(data)
        file.flush()
        return hashlib.sha256(data).hexdigest()


@pytest.fixture
def gateways(tmp_path: Path) -> Iterator[tuple[Gateway, Gateway]]:
    world = World(tmp_path)
    a, b = world.start("a"), world.start("b")
    yield a, b
    b.assert_sound()
    for gateway in (a, b):
        gateway.die()


@pytest.fixture(autouse=True)
def _no_qemu_img(monkeypatch: pytest.MonkeyPatch) -> None:
    async def convert(*_arguments: object) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(fetching, "_convert", convert)


def storage(
    gateway: Gateway, directory: Path, glance: FakeGlance, nursery: trio.Nursery
) -> FetchingBlockStorage:
    settings = replace(
        Settings(), data_dir=directory, glance=replace(GlanceSettings(), url="http://glance")
    )
    made = FetchingBlockStorage(gateway.context, StepRunner(), settings, nursery)
    made._glance = glance  # type: ignore[assignment]
    return made


def test_both_use_the_one_that_was_first(gateways: tuple[Gateway, Gateway], tmp_path: Path) -> None:
    found: list[ImageRecord] = []

    async def main() -> None:
        glance = FakeGlance(2)
        async with trio.open_nursery() as nursery:
            for gateway in gateways:
                one = storage(gateway, tmp_path, glance, nursery)

                async def fetch(one: FetchingBlockStorage = one) -> None:
                    found.append(await one._fetched(IMAGE, "token", MIB))

                nursery.start_soon(fetch)

    trio.run(main)
    assert found[0] == found[1]
    for gateway in gateways:
        gateway.index.refresh()
        assert [one.image.id for one in gateway.images.all()] == ["1234"]
        assert gateway.images.being_imported() == []


def test_another_image_of_that_name_is_a_conflict_still(
    gateways: tuple[Gateway, Gateway], tmp_path: Path
) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            first = storage(gateways[0], tmp_path, FakeGlance(1), nursery)
            await first._fetched(IMAGE, "token", MIB)
            second = storage(gateways[0], tmp_path, FakeGlance(1), nursery)
            named_alike = replace(IMAGE, id="5678")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(fetching, "NewImage", _named_like_the_first)
                with pytest.raises(ConflictError):
                    await second._fetched(named_alike, "token", MIB)

    trio.run(main)


def _named_like_the_first(**given: object) -> object:
    return NewImage(**{**given, "name": "glance-1234"})  # type: ignore[arg-type]
