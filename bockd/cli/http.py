"""HTTP as the clients use it: over the daemon's Unix socket, or to a URL.

Whatever goes wrong below HTTP is an UnavailableError that says whom we tried and what to do.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bockd import errors

if TYPE_CHECKING:
    import ssl

    import httpx

ANSWER_TIMEOUT_SECONDS = 60.0
"""For what the daemon does at once; a snapshot may wait for a flush of a slow disk."""

SOCKET_URL = "http://bockd"
"""What stands for the socket in URLs; no name is looked up."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. Names of headers are in lower case."""

    status: int
    content: bytes
    headers: Mapping[str, str]

    @property
    def is_error(self) -> bool:
        return self.status >= 400


class Http:
    """Requests to one daemon. Nothing is opened before the first."""

    def __init__(
        self,
        socket_path: Path | None,
        *,
        within_seconds: float | None = None,
        ca_file: str | None = None,
    ) -> None:
        """`socket_path` None: to the URLs themselves. `within_seconds` bounds all requests together
        from now on; else each has `ANSWER_TIMEOUT_SECONDS`."""
        self._socket_path = socket_path
        self._deadline = None if within_seconds is None else time.monotonic() + within_seconds
        self._ca_file = ca_file
        self._client: httpx.Client | None = None

    def close(self) -> None:
        """Hang up."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def request(
        self,
        method: str,
        url: str,
        body: Mapping[str, object] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        patient: bool = False,
    ) -> Answer:
        """One request, whatever its answer says. `patient`: however long the answer takes."""
        client = self._open(url)
        import httpx

        seconds = ANSWER_TIMEOUT_SECONDS
        if self._deadline is not None:
            seconds = max(0.001, self._deadline - time.monotonic())
        timeout = httpx.Timeout(seconds, read=None if patient else seconds)
        whom = self._whom(url)
        try:
            response = client.request(method, url, json=body, headers=headers, timeout=timeout)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise self._unreachable(url, _reason(error)) from error
        except httpx.ReadTimeout as error:
            raise errors.UnavailableError(
                f"{whom} took longer than {seconds:g} seconds to answer; the operation may still "
                "be carried out"
            ) from error
        except httpx.HTTPError as error:
            raise errors.UnavailableError(
                f"{whom} went away during the request ({error})"
            ) from error
        except httpx.InvalidURL as error:
            raise errors.InvalidRequestError(f"{url!r} is not a URL: {error}") from error
        return Answer(response.status_code, response.content, response.headers)

    def find(self) -> None:
        """Raise UnavailableError when there is no socket at all."""
        if self._socket_path is not None:
            try:
                self._socket_path.stat()
            except OSError as error:
                raise self._unreachable("", error.strerror or str(error)) from error

    def _open(self, url: str) -> httpx.Client:
        if self._client is None:
            self.find()
            # Imported late: --help, and the shell's completion without a daemon, must not wait.
            import httpx

            if self._socket_path is not None:
                self._client = httpx.Client(
                    # There is no TLS on a socket; without `verify` no certificates are loaded.
                    transport=httpx.HTTPTransport(uds=str(self._socket_path), verify=False),
                    trust_env=False,  # a proxy of the environment must not come between
                )
            else:
                self._client = httpx.Client(verify=self._trust(url))
        return self._client

    def _trust(self, url: str) -> ssl.SSLContext | bool:
        if not url.startswith("https:"):
            return False
        import ssl

        try:
            return ssl.create_default_context(cafile=self._ca_file) if self._ca_file else True
        except OSError as error:
            raise errors.InvalidRequestError(
                f"OS_CACERT: {self._ca_file} cannot be used: {error}"
            ) from error

    def _whom(self, url: str) -> str:
        if self._socket_path is not None:
            return f"the daemon on {self._socket_path}"
        return f"the server at {url}"

    def _unreachable(self, url: str, reason: str) -> errors.UnavailableError:
        if self._socket_path is None:
            return errors.UnavailableError(
                f"nobody answers at {url} ({reason}): is the daemon running there, and is "
                "OS_AUTH_URL right?"
            )
        if reason == os.strerror(errno.EACCES):
            return errors.UnavailableError(
                f"you may not use {self._socket_path}: run as the user who started the daemon"
            )
        return errors.UnavailableError(
            f"no daemon answers on {self._socket_path} ({reason}): start it with `bockd serve` "
            "or `make run`, or set BOCKD_DATA to the directory of the one that runs, or "
            "OS_AUTH_URL to the address of one elsewhere"
        )


def _reason(error: Exception) -> str:
    """httpx says "[Errno 111] Connection refused"."""
    text = str(error)
    return text.partition("] ")[2] or text or "it took too long"
