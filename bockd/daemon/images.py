"""Images over a pool and its NBD server (bockd.control.ImageControl)."""

from __future__ import annotations

import logging

import trio

from bockd.blockstorage.contract import NewImage
from bockd.blockstorage.images import Images
from bockd.blockstorage.records import ImageRecord
from bockd.blockstorage.running import StorageContext
from bockd.config import Settings
from bockd.control import ImageInfo, ImportInfo
from bockd.errors import BockdError
from bockd.model import NodeKind, VolumeId, export_uri
from bockd.nbd.server.exports import ExportKey
from bockd.nbd.server.nbd_server import NbdServer

log = logging.getLogger(__name__)

ABANDONED_SECONDS = 120.0
"""An import without a connection for this long is given up: whoever began it was killed. Between
the steps of a living one pass fractions of a second."""

LOOK_SECONDS = 30.0
"""How often that is looked at."""


class PoolImages:
    """Implements bockd.control.ImageControl; see there for what each method promises."""

    def __init__(self, context: StorageContext, server: NbdServer, settings: Settings) -> None:
        self._pool = context.pool
        self._images = Images(context)
        self._server = server
        self._runner = server.runner
        self._socket = str(settings.nbd_socket)
        self._finishing: set[VolumeId] = set()
        """A flush may take long, and is no reason to give up."""

    async def list_images(self) -> list[ImageInfo]:
        return [self._info(record) for record in self._images.all()]

    async def show_image(self, ref: str) -> ImageInfo:
        return self._info(self._images.find(ref))

    async def begin_import(
        self,
        name: str,
        disk_format: str,
        size_bytes: int,
        file_bytes: int,
        checksum: str,
        content_bytes: int | None = None,
    ) -> ImportInfo:
        new = NewImage(
            name, disk_format, size_bytes, file_bytes, checksum, content_bytes=content_bytes
        )
        filling = await self._runner.run(self._images.begin(new))
        return ImportInfo(
            id=filling.volume,
            image=filling.image.id,
            size_bytes=filling.image.size_bytes,
            uri=export_uri(str(filling.volume), self._socket),
        )

    async def finish_import(self, volume: VolumeId) -> ImageInfo:
        self._finishing.add(volume)
        try:
            return self._info(await self._runner.run(self._images.finish(volume)))
        finally:
            self._finishing.discard(volume)

    async def cancel_import(self, volume: VolumeId) -> None:
        await self._runner.run(self._images.cancel(volume))

    async def delete_image(self, ref: str) -> None:
        await self._runner.run(self._images.delete(ref))

    def _info(self, record: ImageRecord) -> ImageInfo:
        image = record.image
        return ImageInfo(
            id=image.id,
            name=image.name,
            disk_format=image.disk_format,
            file_bytes=image.file_bytes,
            checksum=image.checksum,
            size_bytes=image.size_bytes,
            content_bytes=image.content_bytes or image.size_bytes,
            min_size_gib=image.min_size_gib,
            created_at=image.created_at,
            snapshot=record.snapshot,
            fetched=record.fetched,
            uri=export_uri(f"snapshot/{record.snapshot}", self._socket),
        )

    async def give_up_abandoned(self) -> None:
        """Cancel imports that no client fills any more; never ends."""
        unused_since: dict[VolumeId, float] = {}
        told: str | None = None
        while True:
            await trio.sleep(LOOK_SECONDS)
            try:
                unused_since = self._unused(unused_since)
                told = None
            except BockdError as error:
                # The index cannot be read now; volumes are served.
                if str(error) != told:
                    log.warning("no look at abandoned imports: %s", error)
                told = str(error)
                continue
            now = trio.current_time()
            for volume, since in unused_since.items():
                if now - since >= ABANDONED_SECONDS:
                    await self._give_up(volume)

    def _unused(self, before: dict[VolumeId, float]) -> dict[VolumeId, float]:
        """The imports that nobody fills, with the time of the first look that found them so."""
        now = trio.current_time()
        return {
            volume: before.get(volume, now)
            for volume in (filling.volume for filling in self._images.begun_here())
            if volume not in self._finishing and not self._is_connected(volume)
        }

    def _is_connected(self, volume: VolumeId) -> bool:
        return self._server.connections(ExportKey(NodeKind.VOLUME, volume)) > 0

    async def _give_up(self, volume: VolumeId) -> None:
        try:
            await self._runner.run(self._images.cancel(volume))
        except BockdError as error:
            log.warning("the abandoned import into volume %s: %s", volume, error)
        else:
            log.info("gave up the import into volume %s: nobody is connected to it", volume)
