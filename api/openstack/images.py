"""Images in the form of Glance v2, where clients find ids for `imageRef` (section 4.4.2.2)."""

from __future__ import annotations

from typing import Annotated, NotRequired
from urllib.parse import quote, unquote, urlencode

from fastapi import APIRouter, Path, Query
from typing_extensions import TypedDict

from api.openstack.access import Caller
from api.openstack.params import QueryNumber, count
from api.openstack.values import iso_date, shown
from bockd.blockstorage.contract import MAX_PAGE, BlockStorage, Image, ImageId
from bockd.errors import InvalidRequestError

IMAGES_PATH = "/v2/images"


class ImageView(TypedDict):
    """An image as Glance shows one. `checksum` would be an MD5; ours is `os_hash_value`."""

    id: str
    name: str
    status: str
    visibility: str
    protected: bool
    container_format: str
    disk_format: str
    size: int
    min_disk: int
    min_ram: int
    checksum: None
    os_hash_algo: str
    os_hash_value: str
    tags: list[str]
    created_at: str
    updated_at: str
    self: str
    schema: str


class ImageList(TypedDict):
    """A page of images; `next` leads to the following one."""

    images: list[ImageView]
    first: str
    next: NotRequired[str]
    schema: str


def view_image(image: Image) -> ImageView:
    """One image."""
    created = iso_date(image.created_at)
    return {
        "id": image.id,
        "name": image.name,
        "status": "active",
        "visibility": "public",
        "protected": False,
        "container_format": "bare",
        "disk_format": image.disk_format,
        "size": image.size_bytes,
        "min_disk": image.min_size_gib,
        "min_ram": 0,
        "checksum": None,
        "os_hash_algo": "sha256",
        "os_hash_value": image.checksum,
        "tags": [],
        "created_at": created,
        "updated_at": created,
        "self": f"{IMAGES_PATH}/{quote(image.id, safe='')}",
        "schema": "/v2/schemas/image",
    }


def after(images: list[Image], marker: str) -> list[Image]:
    """What follows the image with id `marker`. Raises InvalidRequestError when there is none."""
    for place, image in enumerate(images):
        if image.id == marker:
            return images[place + 1 :]
    raise InvalidRequestError(f"marker is not an image's id: {shown(marker)!r}")


def image_router(storage: BlockStorage) -> APIRouter:
    """`/v2/images`."""
    router = APIRouter(prefix=IMAGES_PATH, tags=["images"])

    @router.get("", response_model_exclude_unset=True)
    async def list_images(
        _: Caller,
        limit: QueryNumber = None,
        marker: Annotated[str | None, Query()] = None,
        name: Annotated[str | None, Query()] = None,
    ) -> ImageList:
        """List the images that volumes can be made from."""
        wanted = MAX_PAGE if limit is None else count("limit", limit) or MAX_PAGE
        images = await storage.list_images()
        if name is not None:
            images = [image for image in images if image.name == name]
        if marker is not None:
            images = after(images, marker)
        page = images[: min(wanted, MAX_PAGE)]
        answer: ImageList = {
            "images": [view_image(image) for image in page],
            "first": IMAGES_PATH,
            "schema": "/v2/schemas/images",
        }
        if len(page) < len(images):
            answer["next"] = f"{IMAGES_PATH}?{urlencode({'marker': page[-1].id, 'limit': wanted})}"
        return answer

    @router.get("/{image_id}")
    async def show_image(_: Caller, image_id: Annotated[str, Path()]) -> ImageView:
        """Show an image."""
        return view_image(await storage.show_image(ImageId(unquote(image_id))))

    return router
