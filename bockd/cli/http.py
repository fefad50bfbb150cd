"""HTTP as the clients use it: over the daemon's Unix socket, or to a URL.

Whatever goes wrong below HTTP is an UnavailableError that says whom we tried and what to do.
"""

from __future__ import annotations

import errno
import http.client
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bockd import errors
from bockd.cli.silence import HTTP_QUESTION, telling_silence
from bockd.overunix import UnixConnection
from bockd.tls.trust import Trust, strictness_advice

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
        trust: Trust | None = None,
    ) -> None:
        """`socket_path` None: to the URLs themselves. `within_seconds` bounds all requests together
        from the first on; else each has `ANSWER_TIMEOUT_SECONDS`."""
        self._socket_path = socket_path
        self._within = within_seconds
        self._deadline: float | None = None
        self._trust = trust or Trust()
        self._local: UnixConnection | None = None
        self._client: httpx.Client | None = None

    def close(self) -> None:
        """Close the connection."""
        if self._local is not None:
            self._local.close()
            self._local = None
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
        """Send one request and return its answer, whatever its status. With `patient`, wait for the
        answer as long as it takes."""
        content, sent = None, dict(headers or {})
        if body is not None:
            content = _encoded(body)
            sent["Content-Type"] = "application/json"
        if self._socket_path is not None:
            return self._request_local(self._socket_path, method, url, content, sent, patient)
        return self._request_remote(method, url, content, sent, patient)

    def _request_local(
        self,
        path: Path,
        method: str,
        url: str,
        content: bytes | None,
        headers: Mapping[str, str],
        patient: bool,
    ) -> Answer:
        seconds = self._seconds_left()
        if self._local is None:
            self._local = UnixConnection(path)
        try:
            self._local.prepare(seconds)
        except OSError as error:
            late = isinstance(error, TimeoutError)
            reason = "it took too long" if late else error.strerror or str(error)
            raise self._unreachable(url, reason) from error
        target = url.removeprefix(SOCKET_URL)
        try:
            with telling_silence(str(path), HTTP_QUESTION):
                answer = self._local.exchange(method, target, content, headers, patient=patient)
        except TimeoutError as error:
            raise self._too_late(url, seconds) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._went_away(url, error) from error
        return Answer(*answer)

    def _request_remote(
        self,
        method: str,
        url: str,
        content: bytes | None,
        headers: Mapping[str, str],
        patient: bool,
    ) -> Answer:
        # Imported late: it takes longer than all that a command on the daemon's machine does.
        import httpx

        client = self._open(url)
        seconds = self._seconds_left()
        timeout = httpx.Timeout(seconds, read=None if patient else seconds)
        try:
            request = client.build_request(
                method, url, content=content, headers=headers, timeout=timeout
            )
            response = _sent(client, request)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise self._tls_error(url, error) or self._unreachable(url, _reason(error)) from error
        except httpx.ReadTimeout as error:
            raise self._too_late(url, seconds) from error
        except httpx.HTTPError as error:
            raise self._tls_error(url, error) or self._went_away(url, error) from error
        except httpx.InvalidURL as error:
            raise errors.InvalidRequestError(f"{url!r} is not a URL: {error}") from error
        return Answer(response.status_code, response.content, response.headers)

    def _too_late(self, url: str, seconds: float) -> errors.UnavailableError:
        return errors.UnavailableError(
            f"{self._whom(url)} took longer than {seconds:g} seconds to answer; the operation may "
            "still be carried out"
        )

    def _went_away(self, url: str, error: Exception) -> errors.UnavailableError:
        return errors.UnavailableError(
            f"{self._whom(url)} went away during the request ({error}){self._perhaps(url)}"
        )

    def _seconds_left(self) -> float:
        """For the next request."""
        if self._within is None:
            return ANSWER_TIMEOUT_SECONDS
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + self._within
        return max(0.001, self._deadline - now)

    def find(self) -> None:
        """Raise UnavailableError when there is no socket at all."""
        if self._socket_path is not None:
            try:
                self._socket_path.stat()
            except OSError as error:
                raise self._unreachable("", error.strerror or str(error)) from error

    def _open(self, url: str) -> httpx.Client:
        if self._client is None:
            import httpx

            self._client = httpx.Client(verify=self._tls(url))
        return self._client

    def _tls(self, url: str) -> ssl.SSLContext | bool:
        if not url.startswith("https:"):
            return False
        return self._trust.context()

    def _whom(self, url: str) -> str:
        if self._socket_path is not None:
            return f"the daemon on {self._socket_path}"
        return f"the server at {url}"

    def _tls_error(self, url: str, error: Exception) -> errors.UnavailableError | None:
        """What to do about TLS, if that is what failed."""
        said = str(error)
        if "CERTIFICATE_VERIFY_FAILED" in said:
            reason = _without_place(said.partition("certificate verify failed: ")[2])
            advice = strictness_advice(error) or (
                "set OS_CACERT to a file with the certificate of the CA that signed it, and use a "
                "host name that is in it"
            )
            return errors.UnavailableError(
                f"the certificate of the server at {url} is not trusted ({reason}): {advice}"
            )
        if "WRONG_VERSION_NUMBER" in said or "RECORD_LAYER_FAILURE" in said:
            return errors.UnavailableError(
                f"the server at {url} does not speak TLS: is it http rather than https?"
            )
        return None

    def _perhaps(self, url: str) -> str:
        """What may be behind it when a server hangs up, which is all that many do about TLS."""
        if self._socket_path is not None:
            return ""
        if not url.startswith("https:"):
            return "; if it speaks https, say so in OS_AUTH_URL"
        if self._trust.certificate_file is None:
            return "; if it wants a client certificate, set OS_CERT and OS_KEY"
        return "; perhaps it does not accept the certificate in OS_CERT"

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
            f"no daemon answers on {self._socket_path} ({reason}): start it with "
            "`systemctl start bockd` where it is a service, otherwise with `bockd serve` or "
            "`make run`; or set BOCKD_DATA to the directory of the one that runs, or OS_AUTH_URL "
            "to the address of one elsewhere"
        )


class _Way:
    """How far a request has come, as httpx tells it ("trace" among its request extensions)."""

    def __init__(self) -> None:
        self.is_on_kept_connection = True
        self.is_sent = False
        """All of it."""

    def note(self, event: str, _details: object) -> None:
        """Take note of what httpx does."""
        if event == "connection.connect_tcp.started":
            self.is_on_kept_connection = False
        elif event == "http11.send_request_body.complete":
            self.is_sent = True


def _sent(client: httpx.Client, request: httpx.Request) -> httpx.Response:
    """Send a request and return the answer. On a connection that was kept, the server may hang up
    at this very moment. Then the request goes out once more on a new one, if the server cannot have
    carried it out, because a part of it was never sent, or if it changes nothing: as in
    `bockd.overunix`. Raises httpx's errors."""
    import httpx

    way = _Way()
    request.extensions["trace"] = way.note
    try:
        return client.send(request)
    except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
        if not way.is_on_kept_connection or (way.is_sent and request.method != "GET"):
            raise
    return client.send(request)


def _encoded(body: Mapping[str, object]) -> bytes:
    """A request's JSON. InvalidRequestError for text that no JSON can hold."""
    import msgspec

    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError as error:
        raise errors.InvalidRequestError(
            f"{error.object!r} is not valid Unicode text, which all names are"
        ) from error


def _without_place(said: str) -> str:
    """OpenSSL ends with the place in Python's source."""
    return said.partition(" (_ssl")[0]


def _reason(error: Exception) -> str:
    """httpx says "[Errno 111] Connection refused"."""
    text = str(error)
    return text.partition("] ")[2] or text or "it took too long"
