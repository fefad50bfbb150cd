"""`bock trash`: the whole trash is emptied in one request, which takes as long as it takes."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from bockd.cli.http import Answer, Http
from bockd.cli.trashclient import empty_trash
from tests.cli.daemon import Daemon


def test_emptying_the_trash_is_waited_for(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []
    request = Http.request

    @functools.wraps(request)
    def noted(http: Http, method: str, *args: Any, patient: bool = False, **more: Any) -> Answer:
        asked.append((method, patient))
        return request(http, method, *args, patient=patient, **more)

    monkeypatch.setattr(Http, "request", noted)
    with daemon.storage() as client:
        assert empty_trash(client) == 0
    assert ("DELETE", True) in asked
