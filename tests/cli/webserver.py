"""A web server that misbehaves on request, for the tests of `bock image import URL`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CUT_BYTES = 300_000
"""After so many bytes of an answer a connection breaks, where it shall."""


@dataclass
class Website:
    """What is served below each of the first path segments, whatever follows it:

    /plain      the content
    /cut        the same, but every connection breaks early; ranges are answered
    /deaf       breaks too, and knows no ranges
    /changing   breaks too, and the content is another one at each request
    /moved      a redirect to /plain
    /circle     a redirect to itself
    /huge       says that it is larger than any disk
    /packed     compressed, though nobody asked for it
    /endless    the content without a length; the connection's end is its end
    /endless-cut  the same, and half of it
    /chunked    the content in chunks
    /chunked-cut  the same, and the last ones are missing
    """

    content: bytes
    url: str = ""
    ranges: list[str] = field(default_factory=list)
    """The ranges that were asked for."""
    requests: int = 0


class _Handler(BaseHTTPRequestHandler):
    site: Website

    def do_GET(self) -> None:
        """Answer as `Website` says."""
        site = self.site
        site.requests += 1
        kind = self.path.split("/")[1]
        if kind in ("moved", "circle"):
            where = {"moved": f"/plain/{self.path.rpartition('/')[2]}", "circle": self.path}[kind]
            self.send_response(302)
            self.send_header("Location", where)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif kind == "huge":
            self._head(200, 17 << 40, "")
        elif kind == "packed":
            self._head(200, 5, "Content-Encoding: gzip")
            self.wfile.write(b"12345")
        elif kind in ("endless", "endless-cut"):
            self._unmeasured(site.content if kind == "endless" else site.content[:CUT_BYTES])
        elif kind in ("chunked", "chunked-cut"):
            self._chunked(site.content, whole=kind == "chunked")
        elif kind in ("plain", "cut", "deaf", "changing"):
            self._send(kind, site)
        else:
            self.send_error(404)

    def _send(self, kind: str, site: Website) -> None:
        version = f'"v{site.requests}"' if kind == "changing" else '"v1"'
        begin = 0
        wanted = self.headers.get("Range")
        if wanted is not None:
            site.ranges.append(wanted)
        if wanted and kind == "cut" and self.headers.get("If-Range") == version:
            begin = int(wanted.removeprefix("bytes=").removesuffix("-"))
        rest = site.content[begin:]
        more = "" if kind == "deaf" else f"ETag: {version}"
        if begin:
            whole = len(site.content)
            self._head(206, len(rest), more, f"Content-Range: bytes {begin}-{whole - 1}/{whole}")
        else:
            self._head(200, len(rest), more)
        # The last attempt at changing content succeeds.
        cut = kind in ("cut", "deaf") or (kind == "changing" and site.requests < 3)
        self.wfile.write(rest[:CUT_BYTES] if cut else rest)

    def _unmeasured(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def _chunked(self, content: bytes, *, whole: bool) -> None:
        self.protocol_version = "HTTP/1.1"
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Connection", "close")
        self.end_headers()
        for at in range(0, len(content) if whole else CUT_BYTES, 100_000):
            chunk = content[at : at + 100_000]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        if whole:
            self.wfile.write(b"0\r\n\r\n")

    def _head(self, status: int, length: int, *lines: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for line in filter(None, lines):
            name, _, value = line.partition(": ")
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Tests print nothing."""


@contextmanager
def website(content: bytes) -> Iterator[Website]:
    """`content`, served on the loopback interface for the duration."""
    site = Website(content)
    handler = type("Handler", (_Handler,), {"site": site})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        site.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield site
        finally:
            server.shutdown()
            thread.join()
