"""Images in the form of Glance v2, where clients find ids for `imageRef` (section 4.4.2.2).

Clients find the service in the catalog, under type `image`, ask it for its versions, and append
`/v2/images` to where it is. So it has a root of its own, `/image`, below which everything is that
stands under `/v2`: the host's root answers with the versions of block storage.
"""

from __future__ import annotations

from typing import Annotated, Any, NotRequired
from urllib.parse import quote, unquote, urlencode

from fastapi import APIRouter, Path, Query, Request
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from api.openstack.access import Caller
from api.openstack.catalog import Catalog
from api.openstack.deferred import reply
from api.openstack.params import QueryNumber, count
from api.openstack.paths import IMAGE_ROOT, IMAGE_VERSIONS_PATH
from api.openstack.values import iso_date, shown
from bockd.blockstorage.contract import BlockStorage, Image, ImageId
from bockd.errors import InvalidRequestError, NotFoundError

IMAGES_PATH = "/v2/images"
SCHEMAS_PATH = "/v2/schemas"

FILTERS = ("name", "id", "status", "visibility", "disk_format", "container_format", "os_hash_value")
"""Keys of an image that a list may be asked for by; others are ignored, as for sorting."""

API_VERSION = "v2.7"
"""Of Glance: the first one with `os_hash_value`."""


@reply
class ImageView(TypedDict):
    """An image as Glance shows one. `checksum` would be an MD5; ours is `os_hash_value`. `size` and
    the hash are those of the file that was imported, which is not kept: `file` leads to a 404."""

    id: str
    name: str
    status: str
    visibility: str
    protected: bool
    container_format: str
    disk_format: str
    size: int
    virtual_size: int
    min_disk: int
    min_ram: int
    checksum: None
    os_hash_algo: str
    os_hash_value: str
    os_hidden: bool
    owner: None
    tags: list[str]
    created_at: str
    updated_at: str
    self: str
    file: str
    schema: str


@reply
class ImageList(TypedDict):
    """A page of images; `next` leads to the following one."""

    images: list[ImageView]
    first: str
    next: NotRequired[str]
    schema: str


def view_image(image: Image) -> ImageView:
    """Render one image."""
    created = iso_date(image.created_at)
    path = f"{IMAGES_PATH}/{quote(image.id, safe='')}"
    return {
        "id": image.id,
        "name": image.name,
        "status": "active",
        "visibility": "public",
        "protected": False,
        "container_format": "bare",
        "disk_format": image.disk_format,
        "size": image.file_bytes,
        "virtual_size": image.content_bytes or image.size_bytes,
        "min_disk": image.min_size_gib,
        "min_ram": 0,
        "checksum": None,
        "os_hash_algo": "sha256",
        "os_hash_value": image.checksum,
        "os_hidden": False,
        "owner": None,
        "tags": [],
        "created_at": created,
        "updated_at": created,
        "self": path,
        "file": f"{path}/file",
        "schema": f"{SCHEMAS_PATH}/image",
    }


class Link(TypedDict):
    """Where something is."""

    rel: str
    href: str


class ImageVersion(TypedDict):
    """A version of the image service."""

    id: str
    status: str
    links: list[Link]


@reply
class ImageVersions(TypedDict):
    """What is at the root of the image service."""

    versions: list[ImageVersion]


def after(images: list[ImageView], marker: str) -> list[ImageView]:
    """Return what follows the image with id `marker`. Raise InvalidRequestError when there is
    none."""
    for place, image in enumerate(images):
        if image["id"] == marker:
            return images[place + 1 :]
    raise InvalidRequestError(f"marker is not an image's id: {shown(marker)!r}")


def chosen(images: list[Image], filters: dict[str, str]) -> list[ImageView]:
    """Return the images whose keys have these values."""
    views = [view_image(image) for image in images]
    return [view for view in views if all(view.get(key) == value for key, value in filters.items())]


def image_router(storage: BlockStorage) -> APIRouter:
    """Build the router of `/v2/images` and `/v2/schemas`, to be included where clients look for
    them."""
    router = APIRouter(tags=["images"])

    @router.get(IMAGES_PATH, response_model_exclude_unset=True)
    async def list_images(
        _: Caller,
        request: Request,
        limit: QueryNumber = None,
        marker: Annotated[str | None, Query()] = None,
        name: Annotated[str | None, Query()] = None,
    ) -> ImageList:
        """List the images that volumes can be made from."""
        del name  # for the OpenAPI document; it is one of the filters
        wanted = None if limit is None else count("limit", limit) or None
        filters = {key: value for key, value in request.query_params.items() if key in FILTERS}
        images = chosen(await storage.list_images(), filters)
        if marker is not None:
            images = after(images, marker)
        page = images[:wanted]
        first = filters if wanted is None else {**filters, "limit": str(wanted)}
        answer: ImageList = {
            "images": page,
            "first": f"{IMAGES_PATH}?{urlencode(first)}" if first else IMAGES_PATH,
            "schema": f"{SCHEMAS_PATH}/images",
        }
        if len(page) < len(images):
            following = {**filters, "limit": str(wanted), "marker": page[-1]["id"]}
            answer["next"] = f"{IMAGES_PATH}?{urlencode(following)}"
        return answer

    @router.get(f"{IMAGES_PATH}/{{image_id}}")
    async def show_image(_: Caller, image_id: Annotated[str, Path()]) -> ImageView:
        """Show an image."""
        return view_image(await storage.show_image(ImageId(unquote(image_id))))

    @router.get(f"{IMAGES_PATH}/{{image_id}}/file", include_in_schema=False)
    async def refuse_file(_: Caller, image_id: Annotated[str, Path()]) -> None:
        """Refuse to send the file that Glance would send here."""
        found = await storage.show_image(ImageId(unquote(image_id)))
        raise NotFoundError(
            f"The file that image {found.id} was imported from is not kept: make a volume of it."
        )

    @router.get(f"{SCHEMAS_PATH}/image")
    async def show_schema(_: Caller) -> dict[str, Any]:
        """Describe an image, as JSON schema."""
        return IMAGE_SCHEMA

    @router.get(f"{SCHEMAS_PATH}/images")
    async def show_list_schema(_: Caller) -> dict[str, Any]:
        """Describe a list of images, as JSON schema."""
        return LIST_SCHEMA

    return router


def read_only(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema with each property marked read-only: glanceclient makes options of those
    that can be set."""
    properties = schema["properties"]
    return {
        **schema,
        "properties": {key: {**properties[key], "readOnly": True} for key in properties},
    }


IMAGE_SCHEMA: dict[str, Any] = {"name": "image", **read_only(TypeAdapter(ImageView).json_schema())}
LIST_SCHEMA: dict[str, Any] = {
    "name": "images",
    "type": "object",
    "properties": {
        "images": {"type": "array", "items": IMAGE_SCHEMA},
        "first": {"type": "string"},
        "next": {"type": "string"},
        "schema": {"type": "string"},
    },
}


def image_root_router(catalog: Catalog) -> APIRouter:
    """Build the router of `/image`, and of its other name `/image/versions`; they need no token."""
    router = APIRouter(tags=["images"])

    @router.get(IMAGE_VERSIONS_PATH, include_in_schema=False)
    @router.get(IMAGE_ROOT)
    async def list_image_versions(request: Request) -> ImageVersions:
        """List the versions of the image service."""
        href = f"{catalog.own_url(request)}{IMAGE_ROOT}/v2/"
        return {
            "versions": [
                {
                    "id": API_VERSION,
                    "status": "CURRENT",
                    "links": [{"rel": "self", "href": href}],
                }
            ]
        }

    return router
