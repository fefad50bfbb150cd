"""A client of Glance v2: what an image is, and its file.

It trusts nothing that it is told: the file is as long as announced and has the announced hash, or
it is refused.
"""

from __future__ import annotations

import hashlib
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import httpx
import msgspec
import trio

from bockd.blockstorage.contract import ImageId
from bockd.blockstorage.images import DISK_FORMATS
from bockd.blockstorage.records import no_image
from bockd.blockstorage.rules import MAX_SIZE_GIB, size_in_gib
from bockd.config.sections import GlanceSettings
from bockd.errors import (
    DamagedError,
    InvalidRequestError,
    UnavailableError,
)
from bockd.model import GIB
from bockd.tls.trust import strictness_advice

MAX_ANSWER_BYTES = 1 << 20
"""Of an image's description: a page of JSON."""

WRITE_BYTES = 1 << 20
"""What is collected before a thread writes and hashes it."""

SLOWEST_BYTES_PER_SECOND = 64 << 10
"""A file that comes more slowly on the whole is given up: a Glance that sends a byte now and then
is never silent, and would keep a fetch and the volumes that wait for it for ever."""

_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
_HIDDEN = frozenset({401, 403, 404})
"""What Glance answers when the image is not there for this token. All are a 404 here: another
answer would tell somebody that there is such an image."""

_ALGORITHMS = frozenset({"sha256", "sha384", "sha512"})


@dataclass(frozen=True, slots=True)
class GlanceImage:
    """An image as Glance describes it; keys that are not needed are left out."""

    id: str
    status: str
    size: int | None = None
    virtual_size: int | None = None
    disk_format: str | None = None
    container_format: str | None = None
    min_disk: int = 0
    checksum: str | None = None
    os_hash_algo: str | None = None
    os_hash_value: str | None = None

    @property
    def min_size_gib(self) -> int | None:
        """The smallest volume that holds it, as far as that is known before it is read."""
        virtual = self.size if self.disk_format == "raw" else self.virtual_size
        if virtual is None and not self.min_disk:
            return None
        return max(self.min_disk, size_in_gib(virtual or 0), 1)

    def hash(self) -> tuple[hashlib._Hash, str]:
        """Return a new hash object of the strongest kind that Glance gives, and the digest expected
        of the file. Raise InvalidRequestError when Glance has no checksum of the image."""
        if self.os_hash_algo in _ALGORITHMS and self.os_hash_value:
            return hashlib.new(self.os_hash_algo), self.os_hash_value.lower()
        if self.checksum:
            return hashlib.new("md5", usedforsecurity=False), self.checksum.lower()
        raise InvalidRequestError(f"Invalid image: image {self.id} has no checksum in Glance.")


class Glance:
    """The Glance of the configuration."""

    def __init__(self, settings: GlanceSettings) -> None:
        assert settings.url is not None
        self._url = settings.url.removesuffix("/v2")
        self._timeout = float(settings.timeout_seconds)
        self._max_bytes = settings.max_gigabytes * GIB
        self._tls: ssl.SSLContext | bool = True
        if settings.ca_file is not None:
            self._tls = ssl.create_default_context(cafile=str(settings.ca_file))

    def _client(self) -> httpx.AsyncClient:
        # Redirects are not followed and no proxy is asked: the token is for Glance alone.
        return httpx.AsyncClient(
            base_url=f"{self._url}/v2/images/",
            timeout=self._timeout,
            verify=self._tls,
            trust_env=False,
        )

    async def describe(self, image: ImageId, token: str) -> GlanceImage:
        """Return what Glance tells the owner of a token about an image.

        Raises NotFoundError when the owner may not see such an image, InvalidRequestError when no
        volume can be made from it, UnavailableError when Glance does not answer, or not as it
        should.
        """
        if not _ID.fullmatch(image):
            raise no_image(image)
        with _at_most(self._timeout):
            answer = await self._description(image, token)
        try:
            found = msgspec.json.decode(answer, type=GlanceImage)
        # Malformed, or nested without end. msgspec's errors are ValueErrors in newer releases only.
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise UnavailableError(f"Glance's answer is not understood: {error}") from error
        if found.id != image:
            raise no_image(image)
        self._check_usable(found)
        return found

    async def _description(self, image: ImageId, token: str) -> bytes:
        try:
            async with (
                self._client() as http,
                http.stream("GET", image, headers=_headers(token)) as response,
            ):
                _check_status(response, image)
                return await _short(response)
        except httpx.HTTPError as error:
            raise _unavailable(error) from error

    def _check_usable(self, image: GlanceImage) -> None:
        if image.status != "active":
            raise InvalidRequestError(f"Invalid image: image {image.id} is {image.status[:40]}.")
        if image.disk_format not in DISK_FORMATS or image.container_format != "bare":
            raise InvalidRequestError(
                f"Invalid image: image {image.id} is {image.disk_format} in "
                f"{image.container_format}; volumes are made of {', '.join(sorted(DISK_FORMATS))} "
                "in bare."
            )
        if image.size is None or not 0 < image.size <= self._max_bytes:
            raise InvalidRequestError(
                f"Invalid image: image {image.id} has {image.size} bytes; "
                f"1 to {self._max_bytes} are fetched."
            )
        if (image.min_size_gib or 0) > MAX_SIZE_GIB:
            raise InvalidRequestError(f"Invalid image: image {image.id} is too large for a volume.")
        image.hash()

    async def download(self, image: GlanceImage, token: str, file: IO[bytes]) -> str:
        """Download the image's file into `file`, verify it, and return its SHA-256.

        Raises DamagedError when it is not what was announced, NotFoundError, UnavailableError,
        OSError when it cannot be written.
        """
        arrived = _Arrived(image, file)
        with _at_most(self._timeout + (image.size or 0) / SLOWEST_BYTES_PER_SECOND):
            await self._receive(image, token, arrived)
        await trio.to_thread.run_sync(arrived.write)
        return arrived.verified()

    async def _receive(self, image: GlanceImage, token: str, arrived: _Arrived) -> None:
        try:
            async with (
                self._client() as http,
                http.stream("GET", f"{image.id}/file", headers=_headers(token)) as response,
            ):
                _check_status(response, ImageId(image.id))
                async for chunk in response.aiter_raw():
                    arrived.collect(chunk)
                    if arrived.waiting_bytes >= WRITE_BYTES:
                        await trio.to_thread.run_sync(arrived.write)
        except httpx.HTTPError as error:
            raise _unavailable(error) from error


class _Arrived:
    """What has arrived of a file."""

    def __init__(self, image: GlanceImage, file: IO[bytes]) -> None:
        self._image = image
        self._file = file
        self._announced, self._expected = image.hash()
        self._ours = hashlib.sha256()
        self._length = 0
        self._waiting: list[bytes] = []
        self.waiting_bytes = 0

    def collect(self, chunk: bytes) -> None:
        """Keep a piece until `write`. DamagedError when there is more than was announced."""
        self._waiting.append(chunk)
        self.waiting_bytes += len(chunk)
        self._length += len(chunk)
        if self._length > (self._image.size or 0):
            raise DamagedError(f"image {self._image.id}: Glance sends more than it announced")

    def write(self) -> None:
        """Write and hash what is kept. For a thread."""
        for chunk in self._waiting:
            self._file.write(chunk)
            self._announced.update(chunk)
            self._ours.update(chunk)
        self._file.flush()
        self._waiting.clear()
        self.waiting_bytes = 0

    def verified(self) -> str:
        """The SHA-256, when all is there and as announced. DamagedError."""
        if self._length != self._image.size:
            raise DamagedError(
                f"image {self._image.id}: {self._length} bytes came of {self._image.size}"
            )
        if self._announced.hexdigest() != self._expected:
            raise DamagedError(f"image {self._image.id}: its {self._announced.name} is wrong")
        return self._ours.hexdigest()


def _headers(token: str) -> dict[str, str]:
    return {"X-Auth-Token": token, "Accept-Encoding": "identity"}


def _check_status(response: httpx.Response, image: ImageId) -> None:
    if response.status_code in _HIDDEN:
        raise no_image(image)
    if response.status_code != 200:
        raise UnavailableError(f"Glance answered {response.status_code} for image {image}")


async def _short(response: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise UnavailableError("Glance's answer is longer than any image's description")
    return bytes(body)


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """UnavailableError when what is inside takes longer."""
    with trio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise UnavailableError(f"Glance is too slow: it is not done after {seconds:.0f} seconds")


def _unavailable(error: httpx.HTTPError) -> UnavailableError:
    reason = "; ".join(filter(None, (str(error) or type(error).__name__, strictness_advice(error))))
    return UnavailableError(f"Glance cannot be reached: {reason}")
