"""The control API's images: `/control/v1/images` and `/control/v1/imports`, one endpoint for each
method of `bockd.control.ImageControl`. See `api.control` for what holds for all of them.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from api.control import Body, Ref
from bockd.control import ImageControl, ImageInfo, ImportInfo
from bockd.errors import NotFoundError
from bockd.model import VolumeId

MAX_ID_DIGITS = 18
"""What has more has never been an id."""


class BeginImport(Body):
    """The image that is about to be written, and the file that it comes from."""

    name: str
    disk_format: str
    size_bytes: int
    file_bytes: int
    checksum: str
    content_bytes: int | None = None


def import_in_path(volume: str) -> VolumeId:
    """Return the volume of the path's `{volume}`. Raise NotFoundError for what is no id."""
    if not (volume.isascii() and volume.isdigit() and len(volume) <= MAX_ID_DIGITS):
        raise NotFoundError(f"there is no import {volume[:40]!r}")
    return VolumeId(int(volume))


ImportPath = Annotated[str, Path(description="The id of the volume that the import fills")]


def image_control_router(images: ImageControl) -> APIRouter:
    """Build the router of images and of imports."""
    router = APIRouter(tags=["images"])

    @router.get("/images")
    async def list_images() -> list[ImageInfo]:
        """List all images by name."""
        return await images.list_images()

    @router.get("/images/{ref}")
    async def show_image(ref: Ref) -> ImageInfo:
        """Show one image."""
        return await images.show_image(ref)

    @router.delete("/images/{ref}", status_code=204)
    async def delete_image(ref: Ref) -> None:
        """Delete an image; volumes made from it stay."""
        await images.delete_image(ref)

    @router.post("/imports", status_code=201)
    async def begin_import(body: BeginImport) -> ImportInfo:
        """Create a volume to be filled with an image's content."""
        return await images.begin_import(
            body.name,
            body.disk_format,
            body.size_bytes,
            body.file_bytes,
            body.checksum,
            body.content_bytes,
        )

    @router.post("/imports/{volume}/finish")
    async def finish_import(volume: ImportPath) -> ImageInfo:
        """Make an image of what was written."""
        return await images.finish_import(import_in_path(volume))

    @router.delete("/imports/{volume}", status_code=204)
    async def cancel_import(volume: ImportPath) -> None:
        """Cancel an import and delete what was written."""
        await images.cancel_import(import_in_path(volume))

    return router
