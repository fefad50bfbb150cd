"""OpenStack's own Keystone, from the environment that `.setup/keystone` makes, on SQLite."""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from .server import SERVICE_PASSWORD

PROGRAMS = Path(__file__).parents[2] / ".cache" / "keystone" / "bin"

ADMIN_PASSWORD = "admin-password-2Lk"

CONFIGURATION = """\
[DEFAULT]
log_file = {0}/keystone.log
[database]
connection = sqlite:///{0}/keystone.db
[fernet_tokens]
key_repository = {0}/fernet
[credential]
key_repository = {0}/credential
"""

SERVE = """\
import sys
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIServer, WSGIRequestHandler, make_server

configuration = sys.argv[1]
sys.argv = ["keystone", "--config-file", configuration]
from keystone.server.wsgi import initialize_public_application

class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

class Quiet(WSGIRequestHandler):
    def log_message(self, *_):
        pass

with make_server("127.0.0.1", 0, initialize_public_application(), Server, Quiet) as server:
    print(server.server_port, flush=True)
    server.serve_forever()
"""


def in_default(name: str) -> dict[str, Any]:
    return {"name": name, "domain": {"name": "Default"}}


@dataclass
class RealKeystone:
    """A Keystone that runs, and an administrator's hand in it."""

    url: str
    admin: httpx.Client
    ids: dict[str, str] = field(default_factory=dict)
    """Of users and projects, by name."""

    def token(self, user: str, password: str, project: str | None) -> tuple[str, dict[str, Any]]:
        """A token by password."""
        who = {"user": {**in_default(user), "password": password}}
        auth: dict[str, Any] = {"identity": {"methods": ["password"], "password": who}}
        if project is not None:
            auth["scope"] = {"project": in_default(project)}
        answer = self.admin.post("/auth/tokens", json={"auth": auth}, headers={"X-Auth-Token": ""})
        assert answer.status_code == 201, answer.text
        document: dict[str, Any] = answer.json()["token"]
        return answer.headers["X-Subject-Token"], document

    def make(self, kind: str, name: str, **more: str) -> str:
        """A user or a project."""
        answer = self.admin.post(f"/{kind}s", json={kind: {"name": name, **more}})
        assert answer.status_code == 201, answer.text
        number: str = answer.json()[kind]["id"]
        self.ids[name] = number
        return number

    def grant(self, user: str, project: str, role: str) -> None:
        (found,) = self.admin.get("/roles", params={"name": role}).json()["roles"]
        path = f"/projects/{self.ids[project]}/users/{self.ids[user]}/roles/{found['id']}"
        answer = self.admin.put(path)
        assert answer.status_code == 204, answer.text

    def revoke(self, token: str) -> None:
        answer = self.admin.delete("/auth/tokens", headers={"X-Subject-Token": token})
        assert answer.status_code == 204, answer.text

    def populate(self) -> None:
        """The service user, and alice with her two projects."""
        for project in ("service", "acme", "zoo"):
            self.make("project", project)
        self.make("user", "bockd", password=SERVICE_PASSWORD)
        self.make("user", "alice", password="wonderland")
        self.grant("bockd", "service", "service")
        self.grant("alice", "acme", "member")
        self.grant("alice", "zoo", "reader")


@contextmanager
def running(directory: Path) -> Iterator[RealKeystone]:
    """Set one up in `directory` and run it."""
    manage = PROGRAMS / "keystone-manage"
    assert manage.exists(), "Keystone is not installed; run: make test-keystone"
    configuration = directory / "keystone.conf"
    configuration.write_text(CONFIGURATION.format(directory))
    for name in ("fernet", "credential"):
        (directory / name).mkdir(mode=0o700)
    user, group = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name
    owner = ["--keystone-user", user, "--keystone-group", group]
    for step in (
        ["db_sync"],
        ["fernet_setup", *owner],
        ["credential_setup", *owner],
        ["bootstrap", "--bootstrap-password", ADMIN_PASSWORD],
    ):
        subprocess.run(
            [manage, "--config-file", configuration, *step], check=True, capture_output=True
        )
    with subprocess.Popen(
        [PROGRAMS / "python", "-c", SERVE, configuration],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            port = process.stdout.readline().strip()
            assert port, (directory / "keystone.log").read_text()
            url = f"http://127.0.0.1:{port}"
            with httpx.Client(base_url=f"{url}/v3", timeout=60) as admin:
                keystone = RealKeystone(url, admin)
                token, _ = keystone.token("admin", ADMIN_PASSWORD, "admin")
                admin.headers["X-Auth-Token"] = token
                keystone.populate()
                yield keystone
        finally:
            process.terminate()
