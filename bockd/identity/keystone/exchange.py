"""One HTTP request to Keystone and its answer: bounded in time, in size and in number.

Whatever goes wrong between here and there is one UnavailableError. Clients are told no more than
that; the reason goes to the log, once for each change and not for each request.

No token and no password reaches the log: not through an error (they are checked before they become
headers) and not through the libraries (`quiet_libraries`).
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import trio

import bockd
from bockd.errors import InvalidRequestError, OverLimitError, UnavailableError
from bockd.tls.trust import strictness_advice

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 16
"""Requests on their way at once; Keystone's own servers have about as many workers."""

MAX_PENDING = 256
"""Requests that wait for one of those: beyond, clients are told to come back."""

RETRY_AFTER_SECONDS = 1

MAX_ANSWER_BYTES = 1 << 20
"""A token without its catalog has 1 KiB; a list of a thousand projects has 400."""

NOT_NOW = "the identity service cannot be asked now; try again later"
"""What clients are told; the reason may name what is not their business."""

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

ATTEMPTS = 2
"""A connection that was kept may have been closed by the other side just when it is used again."""

SUBJECT_TOKEN = "X-Subject-Token"  # noqa: S105 - the name of a header


@dataclass(frozen=True, slots=True)
class Answer:
    """What Keystone said."""

    status: int
    body: bytes = field(repr=False)
    subject_token: str = field(repr=False)
    """Of the header; "" without one."""


class Exchange:
    """Requests to one Keystone."""

    def __init__(self, http: httpx.AsyncClient, timeout_seconds: float) -> None:
        self._http = http
        self._timeout = timeout_seconds
        self._pending = 0
        self._trouble: str | None = None

    async def ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
    ) -> Answer:
        """Send one request and return the answer, whose status is below 500. Raises
        UnavailableError, OverLimitError."""
        if self._pending >= MAX_PENDING:
            raise OverLimitError("too many requests wait for Keystone", RETRY_AFTER_SECONDS)
        self._pending += 1
        try:
            with trio.fail_after(self._timeout):
                answer = await self._ask(method, path, headers, body)
        except trio.TooSlowError:
            raise self.unavailable(f"no answer within {self._timeout:g} seconds") from None
        except httpx.HTTPError as error:
            raise self.unavailable(_reason(error)) from error
        finally:
            self._pending -= 1
        if answer.status >= httpx.codes.INTERNAL_SERVER_ERROR:
            raise self.unavailable(f"it answers with status {answer.status}")
        return answer

    async def _ask(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> Answer:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._send(method, path, headers, body)
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                if attempt == ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    async def _send(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> Answer:
        sent = dict(headers) if body is None else {**headers, "Content-Type": "application/json"}
        async with self._http.stream(method, path, headers=sent, content=body) as response:
            content = bytearray()
            # Raw, because a compressed answer can become any size. What is too much is dropped as
            # it comes, within the time for the whole: leaving early would leave httpx's generators
            # open.
            async for piece in response.aiter_raw():
                if len(content) <= MAX_ANSWER_BYTES:
                    content += piece
            if len(content) > MAX_ANSWER_BYTES:
                raise self.unavailable(f"its answer is larger than {MAX_ANSWER_BYTES} bytes")
            return Answer(
                response.status_code, bytes(content), response.headers.get(SUBJECT_TOKEN, "")
            )

    def unavailable(self, reason: str) -> UnavailableError:
        """Return the error for a failure of Keystone, or of our use of it. A new reason is
        logged."""
        if reason != self._trouble:
            log.warning("Keystone cannot be used: %s", reason)
            self._trouble = reason
        return UnavailableError(NOT_NOW)

    def well(self) -> None:
        """Note that Keystone has done its work, and log that it can be used again if it could not
        before."""
        if self._trouble is not None:
            log.info("Keystone can be used again")
            self._trouble = None


def open_http(url: str, ca_file: Path | None, timeout_seconds: float) -> httpx.AsyncClient:
    """Open connections to the Keystone at `url`; certificates are always verified. The caller
    closes it.

    Raises InvalidRequestError for certificates that cannot be read.
    """
    quiet_libraries()
    if urlsplit(url).scheme == "http" and urlsplit(url).hostname not in LOOPBACK:
        log.warning("passwords and tokens go to Keystone unencrypted: keystone.url is %s", url)
    try:
        trusted = ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise InvalidRequestError(
            f"keystone.ca_file: {ca_file} holds no certificates that can be read: {error}"
        ) from error
    return httpx.AsyncClient(
        base_url=url if url.endswith("/v3") else f"{url}/v3",
        verify=trusted,
        timeout=timeout_seconds,
        limits=httpx.Limits(max_connections=MAX_CONNECTIONS),
        headers={
            "User-Agent": f"bockd/{bockd.__version__}",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
        },
        # The environment's proxies are for what users fetch, and ~/.netrc is somebody's own.
        trust_env=False,
    )


def _reason(error: BaseException) -> str:
    """What went wrong: for some of it httpx has no words of its own, only the cause has."""
    advice = strictness_advice(error)
    cause: BaseException | None = error
    while cause is not None:
        if str(cause):
            return f"{cause}; {advice}" if advice else str(cause)
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__


def quiet_libraries() -> None:
    """Suppress what httpx and httpcore log: every request and, at debug level, headers with
    tokens."""
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
