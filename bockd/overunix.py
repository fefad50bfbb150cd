"""HTTP over a Unix socket, with the standard library's client.

What `bock` asks of the daemon on its own machine takes a millisecond. Importing a full HTTP client
would take a hundred, so this one is used there, and httpx only towards URLs.
"""

from __future__ import annotations

import http.client
import select
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

KEPT_SECONDS: Final = 5.0
"""How long an idle connection is used again, as in httpx: the daemon ends it after 10
(api.connections), and what is sent at that moment may be lost unread."""


class UnixConnection(http.client.HTTPConnection):
    """A connection that is kept between requests, and made anew when the daemon has ended it."""

    def __init__(self, path: Path) -> None:
        super().__init__("bockd")
        self._path = str(path)
        self._answered_at: float | None = None
        """When the latest answer was complete, by the monotonic clock; None: none on this one."""
        self._sent = False
        """Whether the whole request has gone out."""

    def connect(self) -> None:
        """Open the socket. Raises OSError."""
        opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        opened.settimeout(self.timeout)
        try:
            opened.connect(self._path)
        except BaseException:
            opened.close()
            raise
        self.sock = opened
        self._answered_at = None

    def prepare(self, seconds: float) -> None:
        """Connect, unless that is done already, with a limit of `seconds` for each wait from now
        on. Raises OSError."""
        if self.sock is not None and self._was_ended():
            self.close()
        self.timeout = seconds
        if self.sock is None:
            self.connect()
        else:
            self.sock.settimeout(seconds)

    def _was_ended(self) -> bool:
        """Whether the daemon hung up, or may do so at once: between requests it sends nothing
        else."""
        if self._answered_at is not None and time.monotonic() - self._answered_at > KEPT_SECONDS:
            return True
        poll = select.poll()  # select(2) takes no descriptor beyond 1023
        poll.register(self.sock, select.POLLIN)
        readable = poll.poll(0)
        return bool(readable)

    def exchange(
        self,
        method: str,
        target: str,
        body: bytes | None,
        headers: Mapping[str, str],
        *,
        patient: bool,
    ) -> tuple[int, bytes, Mapping[str, str]]:
        """Send a request and read its whole answer: status, content, headers in lower case.
        `patient` waits for the answer without a limit.

        On a connection that was kept, the daemon may hang up at this very moment. Then the request
        goes out once more on a new one, if the daemon cannot have carried it out, because a part of
        it was never sent, or if it changes nothing. Raises OSError and http.client's errors.
        """
        was_kept = self._answered_at is not None
        try:
            return self._exchange(method, target, body, headers, patient)
        except ConnectionError:
            if not was_kept or (self._sent and method != "GET"):
                raise
        self.connect()
        return self._exchange(method, target, body, headers, patient)

    def _exchange(
        self,
        method: str,
        target: str,
        body: bytes | None,
        headers: Mapping[str, str],
        patient: bool,
    ) -> tuple[int, bytes, Mapping[str, str]]:
        self._sent = False
        try:
            self.request(method, target, body, dict(headers))
            self._sent = True
            if patient:
                self.sock.settimeout(None)
            answer = self.getresponse()
            content = answer.read()
        except BaseException:
            self.close()  # half an exchange is no beginning for the next one
            raise
        self._answered_at = time.monotonic()
        return answer.status, content, {key.lower(): value for key, value in answer.getheaders()}
