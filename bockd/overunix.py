"""HTTP over a Unix socket, with the standard library's client.

What `bock` asks of the daemon on its own machine takes a millisecond. Importing a full HTTP client
would take a hundred, so this one is used there, and httpx only towards URLs.
"""

from __future__ import annotations

import http.client
import select
import socket
from collections.abc import Mapping
from pathlib import Path


class UnixConnection(http.client.HTTPConnection):
    """A connection that is kept between requests, and made anew when the daemon has ended it."""

    def __init__(self, path: Path) -> None:
        super().__init__("bockd")
        self._path = str(path)

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
        """Whether the daemon hung up: between requests it sends nothing else."""
        readable, _, _ = select.select([self.sock], [], [], 0)
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
        `patient` waits for the answer without a limit. Raises OSError and http.client's errors."""
        try:
            self.request(method, target, body, dict(headers))
            if patient:
                self.sock.settimeout(None)
            answer = self.getresponse()
            content = answer.read()
        except BaseException:
            self.close()  # half an exchange is no beginning for the next one
            raise
        return answer.status, content, {key.lower(): value for key, value in answer.getheaders()}
