"""Files from http and https, fetched into a temporary file with no name.

The file has no name so that nothing is left of it whatever kills the program. A transfer that
breaks off is taken up where it stopped, if the server can do that and says that the file is still
the same one; otherwise it begins anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from bockd.cli.convert import byte_bar
from bockd.cli.scratch import MAX_FILE_BYTES, Scratch, check_room, scratch
from bockd.errors import InvalidRequestError, UnavailableError

if TYPE_CHECKING:
    import httpx

CONNECT_TIMEOUT_SECONDS = 30.0
"""For a name lookup, a connection and TLS; longer is a host that is not there."""

STALL_TIMEOUT_SECONDS = 60.0
"""Without one byte arriving. A slow line is no reason to give up, a silent one is."""

MAX_ATTEMPTS = 5
"""In a row that brought nothing."""

RETRY_SECONDS = 1.0
"""Between two of those."""

MAX_REDIRECTS = 5
"""Mirrors redirect once or twice; more is a circle."""


@dataclass(slots=True)
class Download:
    """A file being fetched."""

    url: str
    kept: Scratch
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    whole_bytes: int | None = None
    """None: the server did not say."""
    version: str | None = None
    """The ETag or date that a later attempt must find again; None when there is none."""

    @property
    def done_bytes(self) -> int:
        """What has arrived."""
        return self.kept.done_bytes

    def begin_anew(self) -> None:
        """Forget what has arrived."""
        self.kept.begin_anew()
        self.digest = hashlib.sha256()


def is_url(text: str) -> bool:
    """Return whether a FILE argument is a URL to fetch."""
    return text.lower().startswith(("http://", "https://"))


def name_in_url(url: str) -> str:
    """Return the last part of a URL's path: the file's name, for people."""
    return unquote(urlsplit(url).path).rpartition("/")[2]


@contextlib.contextmanager
def fetched(url: str) -> Iterator[Download]:
    """Fetch the file behind `url` and yield it when it is whole. It is gone after the body. A
    terminal shows a bar.

    Raises UnavailableError with what the server or the network said, InvalidRequestError for what
    is not a URL or too large, NoSpaceError.
    """
    with scratch(url) as kept:
        download = Download(url, kept)
        fetch(download)
        kept.end()
        yield download


def fetch(download: Download) -> None:
    """Fetch the whole file, with a new attempt whenever one breaks off. Give up when nothing
    arrives at the beginning, or in `MAX_ATTEMPTS` attempts in a row."""
    import httpx

    timeout = httpx.Timeout(STALL_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS)
    hooks = {"request": [refuse_downgrade(download.url)]}
    with httpx.Client(
        timeout=timeout, follow_redirects=True, max_redirects=MAX_REDIRECTS, event_hooks=hooks
    ) as http:
        fruitless = 0
        while True:
            before = download.done_bytes
            try:
                return attempt(http, download)
            except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
                raise InvalidRequestError(f"{download.url} cannot be fetched: {error}") from error
            except httpx.TransportError as error:
                fruitless = 0 if download.done_bytes > before else fruitless + 1
                if before == 0 == download.done_bytes or fruitless >= MAX_ATTEMPTS:
                    raise UnavailableError(
                        f"fetching {download.url} failed after {download.done_bytes} bytes: "
                        f"{str(error) or type(error).__name__}; nothing was imported"
                    ) from error
                if fruitless:
                    time.sleep(RETRY_SECONDS)
            except httpx.HTTPError as error:
                raise UnavailableError(f"fetching {download.url} failed: {error}") from error


def refuse_downgrade(url: str) -> Callable[[httpx.Request], None]:
    """Return a hook that refuses a redirect from https to anything else."""

    def check(request: httpx.Request) -> None:
        if urlsplit(url).scheme.lower() == "https" and request.url.scheme != "https":
            raise InvalidRequestError(f"{url} redirects to {request.url}, which is not encrypted")

    return check


def attempt(http: httpx.Client, download: Download) -> None:
    """Fetch what is missing, in one attempt."""
    headers = {"Accept-Encoding": "identity"}
    if download.done_bytes and download.version:
        headers |= {"Range": f"bytes={download.done_bytes}-", "If-Range": download.version}
    with http.stream("GET", download.url, headers=headers) as response:
        begin(download, response)
        with byte_bar(f"fetching {name_in_url(download.url)}", download.whole_bytes) as show:
            # Not in larger pieces: httpx forgets an incomplete one when the connection breaks.
            for chunk in response.iter_raw():
                download.kept.write(chunk)
                download.digest.update(chunk)
                if show is not None:
                    show(download.done_bytes)


def begin(download: Download, response: httpx.Response) -> None:
    """Read the head of a response, and begin anew unless it goes on where the download stopped."""
    if response.status_code not in (200, 206):
        raise UnavailableError(
            f"{download.url} answered {response.status_code} {response.reason_phrase}"
        )
    if response.status_code == 200 or not continues(download, response):
        download.begin_anew()
        if response.status_code == 206:
            raise UnavailableError(f"{download.url} answered with a part that was not asked for")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise UnavailableError(f"{download.url} is sent compressed although we asked for it as is")
    length = response.headers.get("Content-Length", "")
    refuse_endless(download, response)
    download.whole_bytes = download.done_bytes + int(length) if length.isdigit() else None
    download.version = strong_version(response)
    if download.whole_bytes is not None:
        check_length(download, download.whole_bytes)
        check_room(download.url, download.whole_bytes - download.done_bytes)


def refuse_endless(download: Download, response: httpx.Response) -> None:
    """Raise UnavailableError for a response that ends when the server closes the connection (RFC
    9112, section 6.3): a part of the file could not be told from the whole."""
    chunked = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
    if not chunked and not response.headers.get("Content-Length", "").isdigit():
        raise UnavailableError(
            f"{download.url} does not say how long the file is, so that a part of it could not be "
            "told from the whole: download it by other means, compare its checksum, and import the "
            "file"
        )


def continues(download: Download, response: httpx.Response) -> bool:
    """Return whether a partial response begins where the download stopped."""
    found = str(response.headers.get("Content-Range", ""))
    return found.startswith(f"bytes {download.done_bytes}-")


def strong_version(response: httpx.Response) -> str | None:
    """Return the strong ETag, which identifies exactly these bytes (RFC 9110, section 13.1.5); None
    when there is none, or a weak one only."""
    etag = str(response.headers.get("ETag", ""))
    if etag and not etag.startswith("W/"):
        return etag
    return None


def check_length(download: Download, length_bytes: int) -> None:
    """Raise InvalidRequestError when the file is larger than any image may be."""
    if length_bytes > MAX_FILE_BYTES:
        raise InvalidRequestError(f"{download.url} is larger than {MAX_FILE_BYTES} bytes")
