"""Block storage that fetches images from Glance when it does not have them.

A volume of an image that is not here is `creating` while the image is fetched, once for all who
wait for it: into a file without a name in the data directory, verified, converted by qemu-img in a
process of its own over the NBD socket, as `bock image import` does it. What goes wrong puts the
volume into `error`; so does a crash, at the next start. Whether somebody may have an image is asked
of Glance each time, with their own token, also when the image is here already.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import trio

from bockd.blockstorage import rules
from bockd.blockstorage.contract import ImageId, NewImage, NewVolume, TenantId, Volume
from bockd.blockstorage.images import Images
from bockd.blockstorage.records import ImageRecord, Ledger, no_image
from bockd.blockstorage.running import StorageContext
from bockd.blockstorage.service import PoolBlockStorage
from bockd.config import Settings
from bockd.daemon.glance import Glance, GlanceImage
from bockd.diskimage import Image, open_image, tool_failure
from bockd.diskimage.room import room_for
from bockd.errors import (
    BockdError,
    ConflictError,
    InUseError,
    InvalidRequestError,
    NoSpaceError,
    NotFoundError,
)
from bockd.model import NodeKind, VolumeId, export_uri
from bockd.runtime.steprunner import StepRunner

log = logging.getLogger(__name__)

FETCHES = 2
"""At once; more would only share the line and the disk."""

RELEASE_SECONDS = 10.0
"""For the NBD server to notice that qemu-img has gone."""

RELEASE_POLL_SECONDS = 0.05


@dataclass(eq=False)
class _Fetch:
    """One image on its way, and how that ended for all who wait."""

    largest_bytes: int = 0
    """Of the volumes that wait: an image that fits none of them is not kept."""
    ended: trio.Event = field(default_factory=trio.Event)
    record: ImageRecord | None = None
    error: BockdError | None = None


class FetchingBlockStorage(PoolBlockStorage):
    """`PoolBlockStorage` with a Glance behind it. Fetches run in `nursery`, and are given up with
    it."""

    def __init__(
        self,
        context: StorageContext,
        runner: StepRunner,
        settings: Settings,
        nursery: trio.Nursery,
    ) -> None:
        super().__init__(context, runner)
        self._images = Images(context)
        self._glance = Glance(settings.glance)
        self._directory = settings.data_dir
        """For what is downloaded."""
        in_directory = context.pool.features.in_directory
        self._pool_directory = settings.data_dir if in_directory else None
        self._socket = str(settings.nbd_socket)
        self._nursery = nursery
        self._fetches: dict[str, _Fetch] = {}
        self._turns = trio.CapacityLimiter(FETCHES)

    async def create_volume(self, tenant: TenantId, new: NewVolume) -> Volume:
        """See BlockStorage. UnavailableError when Glance does not answer."""
        if new.image_id is None or new.token is None or self._is_imported(new.image_id):
            return await super().create_volume(tenant, new)
        return await self._create_fetched(tenant, new, new.image_id, new.token)

    async def _create_fetched(
        self, tenant: TenantId, new: NewVolume, image: ImageId, token: str
    ) -> Volume:
        new = self._volumes.checked(new)  # before Glance is troubled
        found = await self._glance.describe(image, token)
        if self._record(image) is not None:
            return await self._runner.run(self._volumes.create(tenant, new, may_use_fetched=True))
        wanted = _sized(new, found)
        volume = await self._runner.run(self._volumes.create_waiting(tenant, wanted))
        size_bytes = rules.exact_size(wanted.size_gib, wanted.size_bytes) or 0
        self._nursery.start_soon(self._complete, volume.id, size_bytes, found, token)
        return volume

    def _record(self, image: ImageId) -> ImageRecord | None:
        with self._index.reading() as txn:
            try:
                return Ledger(txn).image(image)
            except NotFoundError:
                return None

    def _is_imported(self, image: ImageId) -> bool:
        """By the operator, for everybody."""
        record = self._record(image)
        return record is not None and not record.fetched

    async def _complete(
        self, volume: VolumeId, size_bytes: int, image: GlanceImage, token: str
    ) -> None:
        """Give a waiting volume its content, or a reason to be in error."""
        with self.context.working_on(NodeKind.VOLUME, volume):
            await self._fill(volume, size_bytes, image, token)

    async def _fill(
        self, volume: VolumeId, size_bytes: int, image: GlanceImage, token: str
    ) -> None:
        try:
            record = await self._fetched(image, token, size_bytes)
            await self._runner.run(self._volumes.fill(volume, record))
        except BockdError as error:
            log.warning("volume %s from image %s: %s", volume, image.id, error)
            await self._fail(volume)
        except Exception:
            # Whatever a stranger's image brings about, the daemon goes on.
            log.exception("volume %s from image %s", volume, image.id)
            await self._fail(volume)

    async def _fail(self, volume: VolumeId) -> None:
        try:
            await self._runner.run(self._volumes.fail(volume))
        except (BockdError, OSError) as error:
            # It stays `creating` until the next start, which puts it into error.
            log.error("volume %s: %s", volume, error)  # noqa: TRY400

    async def _fetched(self, image: GlanceImage, token: str, size_bytes: int) -> ImageRecord:
        """The image, fetched by the first who needs it, for a volume of this size."""
        found = self._record(ImageId(image.id))
        if found is not None:
            return found
        fetch = self._fetches.get(image.id)
        first = fetch is None
        if fetch is None:
            fetch = self._fetches[image.id] = _Fetch()
        fetch.largest_bytes = max(fetch.largest_bytes, size_bytes)
        if first:
            await self._run(fetch, image, token)
        await fetch.ended.wait()
        if fetch.record is None:
            raise fetch.error or no_image(image.id)
        return fetch.record

    async def _run(self, fetch: _Fetch, image: GlanceImage, token: str) -> None:
        """Fetch, and tell those who wait."""
        try:
            async with self._turns:
                fetch.record = await self._fetch(fetch, image, token)
        except BockdError as error:
            fetch.error = error
        except OSError as error:
            fetch.error = BockdError(f"the image cannot be kept: {error.strerror}")
        except Exception:
            fetch.error = BockdError("the image cannot be used")
            raise
        finally:
            del self._fetches[image.id]
            fetch.ended.set()

    async def _fetch(self, fetch: _Fetch, image: GlanceImage, token: str) -> ImageRecord:
        free = shutil.disk_usage(self._directory).free
        if (image.size or 0) > free:
            raise NoSpaceError(f"image {image.id} has {image.size} bytes, there is room for {free}")
        # Without a name: nothing is left of it when we die.
        with tempfile.TemporaryFile(dir=self._directory) as file:
            checksum = await self._glance.download(image, token, file)
            opened = await trio.to_thread.run_sync(lambda: _open(image, file))
            # A small file may unpack to more than any quota allows. From here to the end of a
            # fetch that is refused nothing is awaited: nobody larger begins to wait for it.
            if opened.volume_bytes > fetch.largest_bytes:
                raise InvalidRequestError(
                    f"image {image.id} needs {rules.size_in_gib(opened.volume_bytes)} GiB; the "
                    "volume is too small for it"
                )
            try:
                return await self._import(image, opened, checksum)
            except ConflictError:
                # Another gateway may have fetched it meanwhile.
                record = self._record(ImageId(image.id))
                if record is None or not record.fetched:
                    raise
                return record

    async def _import(self, image: GlanceImage, opened: Image, checksum: str) -> ImageRecord:
        filling = await self._runner.run(
            self._images.begin(
                NewImage(
                    name=f"glance-{image.id}",
                    disk_format=opened.format,
                    size_bytes=opened.volume_bytes,
                    content_bytes=opened.size_bytes,
                    file_bytes=image.size or 0,
                    checksum=checksum,
                    glance_id=ImageId(image.id),
                )
            )
        )
        try:
            await self._check_room(opened, image)
            await _convert(opened, export_uri(str(filling.volume), self._socket), image.id)
            return await self._released(filling.volume)
        except Exception:  # when we are stopping, the next start sweeps
            await self._discard(filling.volume)
            raise

    async def _check_room(self, opened: Image, image: GlanceImage) -> None:
        """Raise NoSpaceError when the pool's disk has no room for what the image holds."""

        def look() -> None:
            with room_for(opened, self._pool_directory, f"image {image.id}"):
                pass

        await trio.to_thread.run_sync(look)

    async def _released(self, volume: VolumeId) -> ImageRecord:
        """Finish as soon as the server has seen qemu-img go."""
        deadline = trio.current_time() + RELEASE_SECONDS
        while True:
            try:
                return await self._runner.run(self._images.finish(volume))
            except InUseError:
                if trio.current_time() > deadline:
                    raise
            await trio.sleep(RELEASE_POLL_SECONDS)

    async def _discard(self, volume: VolumeId) -> None:
        deadline = trio.current_time() + RELEASE_SECONDS
        while True:
            try:
                return await self._runner.run(self._images.cancel(volume))
            except InUseError:
                if trio.current_time() > deadline:
                    break
            except BockdError as error:
                log.warning("the half import into volume %s: %s", volume, error)
                break
            await trio.sleep(RELEASE_POLL_SECONDS)
        # What stays is swept when nobody has been connected for a while, or at the next start.


def _sized(new: NewVolume, image: GlanceImage) -> NewVolume:
    """`new` with a size. InvalidRequestError."""
    smallest = image.min_size_gib
    asked = rules.exact_size(new.size_gib, new.size_bytes)
    if asked is None:
        if smallest is None:
            raise InvalidRequestError(
                f"Glance does not say how large image {image.id} is: a volume of it needs a size."
            )
        return replace(new, size_gib=smallest)
    size_gib = rules.size_in_gib(asked)
    if smallest is not None and size_gib < smallest:
        raise InvalidRequestError(
            f"image {image.id} needs {smallest} GiB; a volume of {size_gib} GiB is too small for it"
        )
    return new


def _open(image: GlanceImage, file: IO[bytes]) -> Image:
    """Look at what was fetched, as what Glance says that it is. BockdError."""
    path = Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")
    try:
        return open_image(path, image.disk_format)
    except BockdError as error:
        raise type(error)(str(error).replace(str(path), f"image {image.id}")) from error


async def _convert(opened: Image, uri: str, image: str) -> None:
    """Have qemu-img write it to an export. It dies with us."""
    command = ["qemu-img", "convert", "-n", "--target-is-zero", "-W"]
    command += [*opened.source, "-O", "raw", uri]
    try:
        ended = await trio.run_process(
            command, stdin=subprocess.DEVNULL, capture_stdout=True, capture_stderr=True, check=False
        )
    except OSError as error:
        raise BockdError(f"qemu-img cannot be started: {error.strerror}") from error
    if ended.returncode:
        called = ended.stderr.replace(str(opened.path).encode(), f"image {image}".encode())
        raise tool_failure(called)
