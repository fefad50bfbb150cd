"""Images over the real service: found by a real client, made into volumes that hold their data."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bockd.blockstorage.contract import NewImage
from bockd.blockstorage.images import Images
from bockd.blockstorage.running import StorageContext
from bockd.model import GIB, MIB

from ..api.public import Served, fault_of, serving
from .libcloud_driver import connect_to_images
from .pool_service import on_pool

# As in test_libcloud: it forgets connections without closing them.
pytestmark = [
    pytest.mark.usefixtures("forgotten_connections"),
    pytest.mark.filterwarnings(
        "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
    ),
]


@pytest.fixture
def image_ids() -> dict[str, str]:
    """Images in the pool that is served, by name: a small one with data in it, and one of 3 GiB."""
    return {}


@pytest.fixture
def served(tmp_path: Path, image_ids: dict[str, str]) -> Iterator[Served]:
    async def make_images(context: StorageContext) -> None:
        images = Images(context)
        for name, size_bytes in (("debian", 40 * MIB), ("large", 2 * GIB + MIB)):
            checksum = name.encode().hex().ljust(64, "0")
            begun = await images.begin(NewImage(name, "qcow2", size_bytes, 7, checksum))
            image_ids[name] = (await images.finish(begun.volume)).image.id

    with serving(on_pool(tmp_path, prepare=make_images)) as served:
        yield served
    gc.collect()


def test_libcloud_finds_images(served: Served, image_ids: dict[str, str]) -> None:
    driver = connect_to_images(served)
    images = {image.name: image for image in driver.list_images()}
    assert {name: image.id for name, image in images.items()} == image_ids
    found = driver.get_image(image_ids["large"])
    assert (found.name, found.extra["status"]) == ("large", "active")
    assert found.extra["minDisk"] == 3


def test_volumes_from_images(served: Served, image_ids: dict[str, str]) -> None:
    image, large = image_ids["debian"], image_ids["large"]
    with served.client() as client:

        def create(**volume: object) -> Any:
            return client.post("/os-volumes", json={"volume": volume})

        for wanted, size in (
            ({"imageRef": image}, 1),
            ({"imageRef": image, "size": "5"}, 5),
            ({"image_ref": f"{served.url}/v2/images/{image}", "size": 2}, 2),
            ({"imageRef": f"http://elsewhere/v1.1/1/images/{image}/"}, 1),
            ({"imageRef": large}, 3),
            ({"imageRef": large, "size": 3}, 3),
        ):
            volume = create(**wanted).json()["volume"]
            assert (volume["size"], volume["status"]) == (size, "creating"), wanted
            assert volume["imageRef"] in (image, large)
            shown = client.get(f"/os-volumes/{volume['id']}").json()["volume"]
            assert shown["status"] == "available"
        listed = client.get("/os-volumes").json()["volumes"]
        assert len(listed) == 6
        for bad, status in (
            ({"imageRef": large, "size": 2}, 400),
            ({"imageRef": large, "size": 0}, 400),
            ({"imageRef": 7}, 400),
            ({"imageRef": "debian"}, 404),  # a name is no id
            ({"imageRef": image[:-1]}, 404),
            ({"imageRef": ""}, 400),  # none, and no size
            ({"imageRef": f"{served.url}/v2/images/"}, 404),
            ({"imageRef": "../" * 50}, 404),
            ({"imageRef": "x" * 10_000}, 404),
            ({"imageRef": "\u0000"}, 404),
        ):
            assert fault_of(create(**bad))[0] == status, bad
        assert client.get("/os-volumes").json()["volumes"] == listed
