"""Who gets in, and what a page of somebody else's cannot do."""

from __future__ import annotations

import socket
from http.cookies import SimpleCookie
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from api.dashboard.guard import PROTECTION
from bockd.cli.dashboard import page_that_leads_to
from tests.daemon.process import Bockd, serving
from tests.dashboard.visitor import Visitor, link_of, secret_of, visiting

DATA = "/data/overview"

WITHOUT_SESSION = ("/", "/enter", "/static/app.js", "/static/style.css")


def test_a_link_lets_one_browser_in_once(daemon: Bockd) -> None:
    url = link_of(daemon)
    with visiting(url) as first, visiting(url) as second:
        assert first.get(DATA).status_code == 401
        answer = first.enter(secret_of(url))
        assert answer.status_code == 200
        cookie = SimpleCookie(answer.headers["set-cookie"])["bockd"]
        assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "strict", "/")
        # None: for this host only.
        assert (cookie["domain"], cookie["secure"]) == ("", "")
        assert first.get(DATA).status_code == 200
        refused = second.enter(secret_of(url))
        assert (refused.status_code, "set-cookie" in refused.headers) == (401, False)
        assert "bock dashboard" in refused.json()["error"]["message"]
        assert second.get(DATA).status_code == 401


def test_whoever_leaves_is_out(operator: Visitor) -> None:
    assert operator.get(DATA).status_code == 200
    assert operator.post("/leave", {}).status_code == 200
    assert operator.get(DATA).status_code == 401


def test_a_stranger_learns_nothing(stranger: Visitor) -> None:
    for path in WITHOUT_SESSION:
        assert stranger.get(path).status_code == 200, path
    for path in (DATA, "/data/nothing", "/data/pool", "/docs", "/openapi.json", "/static"):
        assert stranger.get(path).status_code == 401, path
    assert stranger.get("/static/nothing.js").status_code == 404
    assert stranger.get("/static/..%2f..%2fapp.py").status_code == 404
    # What is open is decided by the path by which a request is routed.
    for path in ("/%73tatic/app.js", "/%65nter", "/static%2fapp.js", "/%2e/static/app.js"):
        assert stranger.get(path).status_code == 401, path
    for path in ("/do/check", "/do/delete-volume", "/leave"):
        assert stranger.post(path, {}).status_code == 401, path
    for cookie in ("bockd=", "bockd=guess", "bockd", "=;=", 'bockd="\\377"', "bockd=%00"):
        assert stranger.get(DATA, Cookie=cookie).status_code == 401, cookie


@pytest.mark.parametrize("foreign", ["theirs=a b", 'theirs="', "[theirs]=1", "=", ";;", "bockd2=x"])
def test_cookies_of_others_do_no_harm(operator: Visitor, foreign: str) -> None:
    ours = operator.client.headers["Cookie"]
    for cookie in (f"{foreign}; {ours}", f"{ours};{foreign}"):
        assert operator.get(DATA, Cookie=cookie).status_code == 200, cookie


def test_the_name_is_told_to_nobody(operator: Visitor) -> None:
    """Who may not open a link does not hear where it leads."""
    name = operator.host.partition(":")[0]
    refused = operator.get("/", Host="127.0.0.1")
    assert refused.status_code == 403
    assert name not in refused.text + str(refused.headers)


def test_nobody_else_listens_where_the_name_leads(operator: Visitor) -> None:
    """A browser tries one address of the loopback interface first, whichever."""
    port = operator.client.base_url.port or 0
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family) as other, pytest.raises(OSError, match="in use"):
            other.bind((host, port))


def test_another_name_for_us_is_refused(operator: Visitor) -> None:
    """As when a stranger's name is made to lead here (DNS rebinding)."""
    port = operator.client.base_url.port
    for host in (f"evil.example:{port}", f"127.0.0.1:{port}", f"localhost:{port}", "bockd", ""):
        for path in (*WITHOUT_SESSION, DATA):
            answer = operator.get(path, Host=host)
            assert answer.status_code == 403, (host, path)
    assert operator.get(DATA, Host=operator.host.upper()).status_code == 200
    # A whole URL as the target counts for more than Host (RFC 9112, section 3.2.2).
    with socket.create_connection(("127.0.0.1", port or 0)) as connection:
        connection.sendall(
            f"GET http://evil.example{DATA} HTTP/1.1\r\nHost: {operator.host}\r\n"
            f"Cookie: {operator.client.headers['Cookie']}\r\nConnection: close\r\n\r\n".encode()
        )
        assert connection.recv(12) == b"HTTP/1.1 403"


def test_pages_of_others_change_nothing(operator: Visitor) -> None:
    """A cookie comes along from pages of the same site: SameSite alone does not do."""
    body = {"tenant": "x", "volume": 1, "name": "x"}
    others = (
        "http://evil.example",
        "null",
        operator.origin.replace("http:", "https:"),
        operator.origin.rpartition(":")[0] + ":1",
        operator.origin + ".evil.example",
        operator.origin + "/",
        "",
    )
    for origin in others:
        for path in ("/do/delete-volume", "/do/check", "/enter", "/leave"):
            answer = operator.post(path, body, Origin=origin)
            assert answer.status_code == 403, (origin, path)
    right = {"Host": operator.host}
    assert operator.client.post("/do/check", json={}, headers=right).status_code == 403
    # The session is still there: nobody has ended it.
    assert operator.post("/do/delete-volume", body).status_code == 404


def test_nothing_is_changed_by_get_and_nothing_is_fetched_for_others(operator: Visitor) -> None:
    changing = ("check", "delete-volume", "create-volume", "limit-volume", "profile-volume")
    for path in ("/leave", *(f"/do/{one}" for one in changing)):
        assert operator.get(path).status_code == 405, path
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        answer = operator.client.request(method, DATA, headers={"Host": operator.host})
        assert answer.status_code == 403, method
    for site in ("cross-site", "same-site"):
        assert operator.get(DATA, **{"Sec-Fetch-Site": site}).status_code == 403
    assert operator.get(DATA, **{"Sec-Fetch-Site": "same-origin"}).status_code == 200


def test_a_form_of_somebody_elses_is_no_body(operator: Visitor) -> None:
    right = {"Host": operator.host, "Origin": operator.origin}
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = operator.client.post(
            "/do/extend",
            content='{"tenant": "x", "volume": 1, "size_bytes": 1}',
            headers={**right, "Content-Type": kind},
        )
        assert answer.status_code == 415, kind


def test_every_answer_is_protected(operator: Visitor) -> None:
    answers = [operator.get(path) for path in (*WITHOUT_SESSION, DATA, "/nothing", "/do/check")]
    answers.append(operator.get("/", Host="evil.example"))
    answers.append(operator.post("/enter", {"link": "wrong"}))
    for answer in answers:
        for name, value in PROTECTION.items():
            assert answer.headers[name] == value, (answer.url, name)
        assert "access-control-allow-origin" not in answer.headers
    assert "unsafe" not in PROTECTION["Content-Security-Policy"]


def test_the_link_is_in_no_log_and_no_argument(daemon: Bockd, operator: Visitor) -> None:
    url = link_of(daemon)
    with visiting(url) as visitor:
        visitor.get("/enter")
        visitor.enter(secret_of(url))
    session = operator.client.headers["Cookie"].partition("=")[2]
    log = daemon.log.read_text()
    assert secret_of(url) not in log
    assert session not in log


def test_the_page_for_the_browser_is_this_users_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    for url in ("http://a.localhost:1/enter#one", "http://a.localhost:1/enter#two"):
        page = page_that_leads_to(url)
        assert page.stat().st_mode & 0o777 == 0o600
        assert url in page.read_text()
    assert [one.name for one in page.parent.iterdir()] == [page.name]


def test_without_a_link_nothing_listens_and_a_restart_ends_all(tmp_path: Path) -> None:
    with serving(tmp_path / "pool") as daemon:
        line = next(line for line in daemon.announced if "dashboard:" in line)
        assert "off" in line
        url = link_of(daemon)
        with visiting(url) as visitor:
            assert visitor.enter(secret_of(url)).status_code == 200
            # The last session ends, and a link was used up: the port is closed.
            assert visitor.post("/leave", {}).status_code == 200
            port = visitor.client.base_url.port or 0
            while listens(port):
                pass
        again = link_of(daemon)
        assert again.partition("#")[0] != url.partition("#")[0]
        with visiting(again) as visitor:
            visitor.enter(secret_of(again))
            daemon.restart()
            assert not listens(visitor.client.base_url.port or 0)


def listens(port: int) -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_configured_listener_at_the_loopback_interface(tmp_path: Path) -> None:
    config = tmp_path / "bockd.toml"
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    config.write_text(f'[dashboard]\nlisten = "127.0.0.1:{port}"\n')
    with serving(tmp_path / "pool", config=config) as daemon:
        assert any(f"http://127.0.0.1:{port}/" in line for line in daemon.announced)
        url = link_of(daemon)
        name = urlsplit(url).hostname
        assert name is not None
        assert not any(name in line for line in daemon.announced)
        with socket.socket(socket.AF_INET6) as other, pytest.raises(OSError, match="in use"):
            other.bind(("::1", port))
        with visiting(url) as visitor:
            assert visitor.enter(secret_of(url)).status_code == 200


def test_a_configured_listener(tmp_path: Path) -> None:
    config = tmp_path / "bockd.toml"
    config.write_text(
        '[dashboard]\nlisten = "127.0.0.1:0"\npublic_url = "https://Pool.Example:443"\n'
    )
    with serving(tmp_path / "pool", config=config) as daemon:
        assert any("https://pool.example" in line for line in daemon.announced)
        result = daemon.bock("dashboard")
        assert result["url"].startswith("https://pool.example/enter#")
