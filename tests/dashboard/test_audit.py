"""What operators do is in the log: who, what, about which volume, and what came of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.daemon.metrics.scraping import Scrape
from tests.daemon.process import Bockd, serving
from tests.dashboard.visitor import link_of, secret_of, visiting

MIB = 1 << 20


def lines_of(daemon: Bockd, logger: str) -> list[dict[str, Any]]:
    """What one part has logged."""
    lines = [json.loads(line) for line in daemon.log.read_text().splitlines()]
    return [one for one in lines if one["logger"] == logger]


def test_who_did_what(tmp_path: Path) -> None:
    config = tmp_path / "bockd.toml"
    config.write_text('[log]\nformat = "json"\n')
    with serving(tmp_path / "pool", config=config) as daemon:
        url = link_of(daemon)
        with visiting(url) as operator, visiting(url) as stranger:
            operator.enter(secret_of(url))
            refused = stranger.enter(secret_of(url))
            whose = operator.data("overview")["tenants"][0]["id"]
            made = operator.post(
                "/do/create-volume", {"tenant": whose, "name": "disk\xe4", "size_bytes": MIB}
            )
            gone = operator.post(
                "/do/delete-volume", {"tenant": whose, "volume": 4711, "name": "x\n" * 1000}
            )
            bad = operator.post("/do/extend", {"tenant": whose, "volume": "many"})
            operator.do("check")
            operator.post("/leave", {})
        assert Scrape.fresh(daemon).value(
            "bockd_api_requests_total", api="dashboard", method="POST", code="401"
        )
    secrets = (secret_of(url), operator.client.headers["Cookie"].partition("=")[2])
    assert not [one for one in secrets if one in daemon.log.read_text()]
    (link,) = lines_of(daemon, "bockd.daemon.dashboard")
    assert link["message"] == "a link to the dashboard was made"
    entered, tried, *changes, left = lines_of(daemon, "api.dashboard.audit")
    session = entered["session"]
    assert entered["message"] == f"dashboard session {session} began, by a client at 127.0.0.1"
    assert tried["request_id"] == refused.headers["x-openstack-request-id"]
    assert "session" not in tried
    assert left["message"] == f"dashboard session {session} has left"
    assert {one["session"] for one in changes} == {session}
    ids = [answer.headers["x-openstack-request-id"] for answer in (made, gone, bad)]
    assert [one["request_id"] for one in changes[:3]] == ids
    creating, deleting, extending, checking = (one["message"] for one in changes)
    assert creating.startswith(f"dashboard session {session}: create-volume {{")
    assert r"disk\xc3\xa4" in creating
    assert creating.endswith(": done")
    assert changes[1] | {"tenant": whose, "volume": "4711"} == changes[1]
    assert deleting.endswith(": refused: Volume 4711 could not be found.")
    assert len(deleting) < 500
    assert extending.endswith(": not understood")
    assert checking.endswith("check {}: done")
