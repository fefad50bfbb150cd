"""A client of the dashboard that is no browser: it sends what a test wants it to send."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.daemon.process import Bockd

ANSWER_SECONDS = 60.0


@dataclass(frozen=True)
class Visitor:
    """Requests go to the loopback address; `origin` is what the link has."""

    client: httpx.Client
    origin: str

    @property
    def host(self) -> str:
        return urlsplit(self.origin).netloc

    def get(self, path: str, **headers: str) -> httpx.Response:
        """Ask with the right Host, unless `headers` say otherwise."""
        return self.client.get(path, headers={"Host": self.host, **headers})

    def post(self, path: str, body: object, **headers: str) -> httpx.Response:
        """Ask with the right Host and Origin, unless `headers` say otherwise."""
        right = {"Host": self.host, "Origin": self.origin}
        return self.client.post(path, json=body, headers=right | headers)

    def enter(self, link: str) -> httpx.Response:
        """Use a link's secret. The session's cookie is kept by hand: the client knows another host
        than a browser does."""
        answer = self.post("/enter", {"link": link})
        if answer.is_success:
            self.client.headers["Cookie"] = answer.headers["set-cookie"].partition(";")[0]
        return answer

    def data(self, path: str) -> Any:
        """What a GET must answer."""
        answer = self.get(f"/data/{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def do(self, path: str, **body: object) -> Any:
        """What a POST must answer."""
        answer = self.post(f"/do/{path}", body)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None


def link_of(daemon: Bockd) -> str:
    """The URL of a new link."""
    with daemon.control() as control:
        return control.make_dashboard_link().url


@contextmanager
def visiting(url: str) -> Iterator[Visitor]:
    """A visitor of the dashboard of a link, who has not used it."""
    parts = urlsplit(url)
    base = f"http://127.0.0.1:{parts.port}"
    with httpx.Client(base_url=base, timeout=ANSWER_SECONDS) as client:
        yield Visitor(client, f"{parts.scheme}://{parts.netloc}")


def secret_of(url: str) -> str:
    """What the link has behind #."""
    return urlsplit(url).fragment
