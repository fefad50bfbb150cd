"""Whom `bock` acts for and where: OpenStack's variables, the credentials file, what goes wrong."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from .daemon import Daemon, running_daemon


@pytest.fixture
def variables(daemon: Daemon) -> dict[str, str]:
    """What points at the daemon over TCP."""
    lines = daemon.bock("credentials", "--shell").splitlines()
    return dict(line.removeprefix("export ").split("=", 1) for line in lines)


@pytest.fixture
def elsewhere(tmp_path: Path) -> dict[str, str]:
    """The variables of a machine where no daemon is."""
    return {"BOCKD_DATA": str(tmp_path / "none")}


def test_the_credentials_of_the_file_are_shown(daemon: Daemon, variables: dict[str, str]) -> None:
    shown = daemon.bock_json("credentials")
    url = variables["OS_AUTH_URL"].removesuffix("/v2.0")
    assert variables["OS_IDENTITY_API_VERSION"] == "2.0"
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
    assert shown.pop("endpoints") == {
        "identity": f"{url}/v2.0",
        "volume": f"{url}/v1.1/{shown['tenant_id']}",
    }
    path = daemon.data_dir / "credentials.json"
    assert shown == json.loads(path.read_text())
    assert path.stat().st_mode & 0o777 == 0o600
    told = daemon.bock("credentials")
    for value in (*shown.values(), f"{url}/v2.0"):
        assert value in told


def test_by_the_variables_from_another_machine(
    daemon: Daemon, variables: dict[str, str], elsewhere: dict[str, str]
) -> None:
    """All but what moves data; there is no URI where the socket is not."""
    there = {**variables, **elsewhere}

    def bock(*arguments: str) -> Any:
        result = daemon.run("bock", *arguments, "--json", **there)
        assert (result.status, result.err) == (0, ""), result
        return json.loads(result.out)

    made = bock("volume", "create", "remote", "--size", "1M")
    assert (made["size_bytes"], made["uri"]) == (1 << 20, None)
    assert "connect to it" not in daemon.run("bock", "volume", "show", "remote", **there).out
    bock("snapshot", "create", "remote", "remote-then")
    bock("volume", "extend", "remote", "--size", "2M")
    bock("snapshot", "revert", "remote-then")
    assert daemon.bock_json("volume", "show", "remote")["size_bytes"] == 2 << 20
    refused = daemon.refusal("volume", "export", "remote", "/nowhere/x", **there)
    assert "on the daemon's machine" in refused
    image = Path(elsewhere["BOCKD_DATA"]).with_name("new.raw")
    image.write_bytes(b"\1" * 4096)
    assert "on the daemon's machine" in daemon.refusal("volume", "import", image, **there)
    assert "new" not in daemon.names()
    bock("snapshot", "delete", "remote-then")
    bock("volume", "delete", "remote")


def test_another_daemons_volume_is_not_taken_for_ours(
    daemon: Daemon, variables: dict[str, str], tmp_path: Path
) -> None:
    """Two daemons have a volume of one name: with OS_AUTH_URL at the one, data never moves over the
    other one's socket."""
    with running_daemon(tmp_path / "other", api_listen="none") as other:
        other.bock("volume", "create", "same", "--size", "1M")
        daemon.bock("volume", "create", "same", "--size", "1M")
        target = tmp_path / "same.raw"
        assert "on the daemon's machine" in other.refusal(
            "volume", "export", "same", target, **variables
        )
        shown = other.run("bock", "volume", "show", "same", "--json", **variables)
        assert json.loads(shown.out)["uri"] is None
        other.bock("volume", "export", "same", target)
        assert "socket only" in other.refusal("credentials", "--shell")
        assert other.bock_json("credentials")["endpoints"] == {}
    daemon.bock("volume", "delete", "same")


def test_by_the_variables_beside_the_daemon(daemon: Daemon, variables: dict[str, str]) -> None:
    """The daemon behind OS_AUTH_URL is found to be the one behind the socket."""
    here = daemon.bock_json("volume", "create", "both", "--size", "1M")
    shown = daemon.run("bock", "volume", "show", "both", "--json", **variables)
    assert json.loads(shown.out)["uri"] == here["uri"]
    daemon.bock("volume", "delete", "both")


@pytest.mark.parametrize(
    "spelling",
    [
        lambda v, _: {"OS_AUTH_URL": v["OS_AUTH_URL"].removesuffix("/v2.0")},
        lambda v, _: {"OS_AUTH_URL": v["OS_AUTH_URL"] + "/"},
        lambda v, _: {"OS_TENANT_NAME": "", "OS_PROJECT_NAME": "demo"},
        lambda v, _: {"OS_TENANT_NAME": ""},
        lambda v, t: {"OS_TENANT_NAME": "", "OS_TENANT_ID": t},
        lambda v, t: {"OS_TENANT_NAME": "", "OS_PROJECT_ID": t},
        lambda v, _: {"OS_REGION_NAME": "az-1.region-a.geo-1"},
        lambda v, _: {"OS_AUTH_URL": ""},
        lambda v, _: {"OS_CLOUD": "prod"},
        lambda v, _: {"OS_AUTH_TYPE": "password", "OS_IDENTITY_API_VERSION": "2.0"},
        lambda v, _: {"OS_INTERFACE": "public", "OS_PROJECT_DOMAIN_ID": "default"},
        lambda v, _: {"OS_ENDPOINT_TYPE": "publicURL", "OS_DEFAULT_DOMAIN": "default"},
    ],
)
def test_each_spelling_of_the_variables_is_understood(
    daemon: Daemon, variables: dict[str, str], spelling: Any
) -> None:
    tenant_id = daemon.bock_json("credentials")["tenant_id"]
    result = daemon.run("bock", "limits", **{**variables, **spelling(variables, tenant_id)})
    assert (result.status, result.err) == (0, "")
    assert "gigabytes" in result.out


@pytest.mark.parametrize(
    ("wrong", "reasons"),
    [
        ({"OS_PASSWORD": "x"}, ["OS_USERNAME and OS_PASSWORD of the environment are refused"]),
        ({"OS_TENANT_NAME": "x"}, ["are refused in tenant 'x'", "is the tenant right"]),
        ({"OS_REGION_NAME": "x"}, ["no region 'x' (OS_REGION_NAME)", "az-1.region-a.geo-1"]),
        ({"OS_PASSWORD": ""}, ["OS_AUTH_URL is set and OS_PASSWORD is not"]),
        ({"OS_AUTH_URL": "http://127.0.0.1:1"}, ["http://127.0.0.1:1/v2.0/tokens", "refused"]),
        ({"OS_AUTH_URL": "http://[::1"}, ["http://[::1"]),
        ({"OS_AUTH_URL": "nowhere"}, ["nowhere"]),
        ({"OS_AUTH_URL": "https://x", "OS_CACERT": "/nowhere"}, ["OS_CACERT", "/nowhere"]),
        ({"OS_TOKEN": "x"}, ["OS_TOKEN is refused", "expired"]),
        ({"OS_AUTH_TYPE": "v3applicationcredential"}, ["OS_AUTH_TYPE", "OS_PASSWORD"]),
        ({"OS_AUTH_PLUGIN": "token"}, ["OS_AUTH_TYPE is 'token'"]),
        ({"OS_TOKEN": "x", "OS_AUTH_TYPE": "password"}, ["OS_AUTH_TYPE is 'password'"]),
        ({"OS_INTERFACE": "outer"}, ["OS_INTERFACE is 'outer'", "internal"]),
        ({"OS_SYSTEM_SCOPE": "all"}, ["OS_SYSTEM_SCOPE is set"]),
        ({"OS_IDENTITY_API_VERSION": "3", "OS_AUTH_URL": "http://127.0.0.1:1"}, [":1/v3/auth"]),
    ],
)
def test_a_wrong_variable_is_named_in_the_refusal(
    daemon: Daemon, variables: dict[str, str], wrong: dict[str, str], reasons: list[str]
) -> None:
    told = daemon.refusal("volume", "list", **{**variables, **wrong})
    for reason in reasons:
        assert reason in told


@pytest.mark.parametrize(
    "set_",
    [
        *("OS_CLOUD", "OS_APPLICATION_CREDENTIAL_ID", "OS_APPLICATION_CREDENTIAL_NAME"),
        *("OS_DOMAIN_NAME", "OS_TRUST_ID", "OS_USER_ID", "OS_ENDPOINT", "OS_REGION_NAME"),
    ],
)
def test_a_variable_that_names_another_place_never_leads_here(daemon: Daemon, set_: str) -> None:
    """Other clients go elsewhere for it, so the demo tenant of this machine is not meant."""
    told = daemon.refusal("volume", "create", "stray", "--size", "1M", **{set_: "prod"})
    assert set_ in told
    assert "OS_AUTH_URL" in told
    assert "stray" not in daemon.names()


def test_no_daemon_is_not_blamed_for_a_variable(daemon: Daemon, elsewhere: dict[str, str]) -> None:
    told = daemon.refusal("volume", "list", OS_CLOUD="prod", **elsewhere)
    assert "OS_CLOUD is set" in told


def test_wrong_credentials_in_the_file(daemon: Daemon, tmp_path: Path) -> None:
    """What the file says is refused by its name; a file that is none, or is not there, too."""
    for name in ("api.sock", "nbd.sock"):
        (tmp_path / name).symlink_to(daemon.data_dir / name)
    stored = json.loads((daemon.data_dir / "credentials.json").read_text())
    path = tmp_path / "credentials.json"
    for content, reason in (
        ({**stored, "password": "x"}, f"the credentials in {path} are refused in tenant 'demo'"),
        ({"tenant": "demo"}, f"{path} is not what a daemon wrote: it has no tenant_id"),
        ([], f"{path} is not what a daemon wrote"),
    ):
        path.write_text(json.dumps(content))
        assert reason in daemon.refusal("limits", BOCKD_DATA=str(tmp_path))
    path.unlink()
    told = daemon.refusal("limits", BOCKD_DATA=str(tmp_path))
    assert f"there is no {path}" in told
    assert "OS_USERNAME" in told


def test_a_token_of_the_environment_is_used(daemon: Daemon, variables: dict[str, str]) -> None:
    with daemon.storage() as storage:
        token, tenant_id = storage.token, storage.tenant_id
    by_token = {"OS_AUTH_URL": variables["OS_AUTH_URL"], "OS_TOKEN": token}
    for more in ({}, {"OS_TENANT_ID": tenant_id}, {"OS_TENANT_NAME": "demo"}):
        assert daemon.run("bock", "limits", **by_token, **more).status == 0
    assert "not for tenant 'x'" in daemon.refusal("limits", **by_token, OS_TENANT_NAME="x")
    v3 = {**by_token, "OS_AUTH_URL": "http://127.0.0.1:1/v3"}
    assert "Keystone v2.0" in daemon.refusal("limits", **v3)


# -- other identity services -------------------------------------------------------------------


class Answers(BaseHTTPRequestHandler):
    """Answers each path with what the test says, and keeps what it was asked."""

    answers: dict[str, tuple[int, dict[str, str], Any]]
    asked: list[tuple[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self._answer(body)

    def do_GET(self) -> None:
        self._answer(dict(self.headers))

    def _answer(self, body: Any) -> None:
        self.asked.append((self.path, body))
        status, headers, answer = self.answers[self.path.partition("?")[0]]
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Nothing on standard error."""


@contextmanager
def answering(answers: dict[str, Any]) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """A server; its URL, and what it is asked."""
    asked: list[tuple[str, Any]] = []
    handler = type("Handler", (Answers,), {"answers": answers, "asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            serving.join()


def v3_answer(endpoint: str) -> dict[str, Any]:
    """As Keystone answers POST /v3/auth/tokens."""
    endpoints = [
        {"interface": "admin", "region": "one", "url": "http://127.0.0.1:1"},
        {"interface": "public", "region": "zero", "url": "http://127.0.0.1:1"},
        {"interface": "public", "region": "one", "url": endpoint},
    ]
    return {
        "token": {
            "project": {"id": "p1", "name": "proj"},
            "catalog": [
                {"type": "compute", "endpoints": endpoints[:1]},
                {"type": "volume", "endpoints": endpoints},
            ],
        }
    }


def test_keystone_v3(daemon: Daemon, elsewhere: dict[str, str]) -> None:
    """Also against a server that knows nothing of our key: the GiB are its size."""
    answers: dict[str, Any] = {}
    volume: dict[str, Any] = {
        "status": "available",
        "displayDescription": None,
        "availabilityZone": "nova",
        "displayName": "plain",
        "attachments": [{}],
        "volumeType": None,
        "snapshotId": "",
        "size": 3,
        "id": 5,
        "createdAt": "2012-06-27 19:20:35",
        "metadata": {},
    }
    with answering(answers) as (url, asked):
        answers["/v3/auth/tokens"] = (201, {"X-Subject-Token": "t"}, v3_answer(f"{url}/v1.1/p1"))
        answers["/v1.1/p1/os-volumes/detail"] = (200, {}, {"volumes": [volume]})
        variables = {
            "OS_AUTH_URL": f"{url}/v3",
            "OS_USERNAME": "user",
            "OS_PASSWORD": "secret",
            "OS_PROJECT_NAME": "proj",
            "OS_USER_DOMAIN_NAME": "users",
            "OS_PROJECT_DOMAIN_NAME": "projects",
            "OS_REGION_NAME": "one",
            **elsewhere,
        }
        listed = daemon.run("bock", "volume", "list", "--json", **variables)
    assert (listed.status, listed.err) == (0, "")
    (shown,) = json.loads(listed.out)
    assert (shown["size_bytes"], shown["connections"], shown["uri"]) == (3 << 30, None, None)
    assert shown["created_at"] == 1340824835.0
    user = {"name": "user", "password": "secret", "domain": {"name": "users"}}
    assert asked[0] == (
        "/v3/auth/tokens",
        {
            "auth": {
                "identity": {"methods": ["password"], "password": {"user": user}},
                "scope": {"project": {"name": "proj", "domain": {"name": "projects"}}},
            }
        },
    )
    assert asked[1][1]["X-Auth-Token"] == "t"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((200, {}, b"<html>"), "does not answer as Keystone does"),
        ((200, {}, {"access": {}}), "does not answer as Keystone does"),
        ((200, {}, []), "does not answer as Keystone does"),
        ((404, {}, b"not found"), "status 404 and no fault"),
        ((503, {}, {"serviceUnavailable": {"message": "later", "code": 503}}), "later"),
        ((500, {}, {"cloudServersFault": {"message": "oops", "code": 500}}), "oops"),
    ],
)
def test_an_answer_that_is_not_keystones_is_refused(
    daemon: Daemon, answer: Any, reason: str
) -> None:
    with answering({"/v2.0/tokens": answer}) as (url, _):
        told = daemon.refusal("limits", OS_AUTH_URL=url, OS_USERNAME="u", OS_PASSWORD="p")
    assert reason in told


def test_a_catalog_without_volumes(daemon: Daemon) -> None:
    access = {"token": {"id": "t", "tenant": {"id": "x"}}, "serviceCatalog": []}
    with answering({"/v2.0/tokens": (200, {}, {"access": access})}) as (url, _):
        told = daemon.refusal("limits", OS_AUTH_URL=url, OS_USERNAME="u", OS_PASSWORD="p")
    assert "no service of type 'volume'" in told


def test_completion_of_a_server_that_does_not_answer(daemon: Daemon) -> None:
    """It accepts the connection and says nothing; Tab gets nothing, soon, and prints nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        result = daemon.run(
            "bock",
            _BOCK_COMPLETE="bash_complete",
            COMP_WORDS="bock volume show ",
            COMP_CWORD="3",
            OS_AUTH_URL=f"http://127.0.0.1:{silent.getsockname()[1]}",
            OS_USERNAME="u",
            OS_PASSWORD="p",
        )
    assert (result.out, result.err) == ("\n", "")
