"""An `ImageControl` that keeps its records in memory and no data at all."""

from __future__ import annotations

import uuid

from bockd.control import ImageInfo, ImportInfo
from bockd.errors import ConflictError, InUseError, NotFoundError
from bockd.model import SnapshotId, VolumeId
from bockd.validation import check_image_name, check_volume_size


class MemoryImages:
    """See the module."""

    def __init__(self) -> None:
        self.connected: set[VolumeId] = set()
        """The volumes that somebody still writes to."""
        self._last_id = 0
        self._images: dict[str, ImageInfo] = {}
        self._imports: dict[VolumeId, ImageInfo] = {}

    async def list_images(self) -> list[ImageInfo]:
        return sorted(self._images.values(), key=lambda image: image.name)

    async def show_image(self, ref: str) -> ImageInfo:
        for image in self._images.values():
            if ref in (image.id, image.name):
                return image
        raise NotFoundError(f"there is no image {ref!r}")

    async def begin_import(
        self,
        name: str,
        disk_format: str,
        size_bytes: int,
        file_bytes: int,
        checksum: str,
        content_bytes: int | None = None,
    ) -> ImportInfo:
        check_image_name(name)
        check_volume_size(size_bytes)
        for image in self._images.values():
            if image.name == name or image.checksum == checksum:
                raise ConflictError(f"image {image.id} is there already")
        self._last_id += 1
        image = ImageInfo(
            id=str(uuid.uuid4()),
            name=name,
            disk_format=disk_format,
            file_bytes=file_bytes,
            checksum=checksum,
            size_bytes=size_bytes,
            content_bytes=content_bytes or size_bytes,
            min_size_gib=1,
            created_at=0.0,
            snapshot=SnapshotId(self._last_id),
            fetched=False,
            uri=f"nbd+unix:///snapshot/{self._last_id}",
        )
        self._imports[VolumeId(self._last_id)] = image
        return ImportInfo(VolumeId(self._last_id), image.id, size_bytes, "nbd+unix:///x")

    async def finish_import(self, volume: VolumeId) -> ImageInfo:
        image = self._take(volume)
        self._images[image.id] = image
        return image

    async def cancel_import(self, volume: VolumeId) -> None:
        self._take(volume)

    async def delete_image(self, ref: str) -> None:
        del self._images[(await self.show_image(ref)).id]

    def _take(self, volume: VolumeId) -> ImageInfo:
        if volume not in self._imports:
            raise NotFoundError(f"no import fills volume {volume}")
        if volume in self.connected:
            raise InUseError(f"volume {volume} has 1 connection(s)")
        return self._imports.pop(volume)
