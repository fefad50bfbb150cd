"""The part of Keystone's API v3 that bockd uses, as an HTTP server on a free port.

Documents and statuses are those that Keystone 30 gives (tests/identity/keystone/test_real.py runs
the same tests against it). A test may make the server fail in several ways, and count what it was
asked.
"""

from __future__ import annotations

import json
import ssl
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SERVICE_PASSWORD = "service-password-7Qz"

DEFAULT_DOMAIN = {"id": "default", "name": "Default"}


def new_id() -> str:
    return uuid.uuid4().hex


@dataclass
class User:
    """Somebody, and the roles in each project."""

    name: str
    password: str
    roles: dict[str, list[str]]
    """By the project's name."""
    default_project: str | None = None
    id: str = field(default_factory=new_id)


@dataclass
class Token:
    """What is known of one token."""

    user: User
    project: str | None
    expires_at: datetime


Fault = Callable[["Handler"], bool]
"""Answers instead, or returns False to let it pass."""


class Keystone:
    """The server's memory."""

    def __init__(self) -> None:
        self.users: dict[str, User] = {}
        self.projects: dict[str, str] = {}
        """Ids by name."""
        self.tokens: dict[str, Token] = {}
        self.application_credentials: dict[str, tuple[str, User, str]] = {}
        self.asked: list[str] = []
        """Method and path of each request."""
        self.fault: Fault | None = None
        self.token_seconds = 3600.0
        self.url = ""
        for project in ("service", "acme", "zoo"):
            self.projects[project] = new_id()
        self.add("bockd", SERVICE_PASSWORD, {"service": ["service"]})
        self.add("alice", "wonderland", {"acme": ["member", "reader"], "zoo": ["reader"]})
        self.add("nobody", "nothing", {})

    def add(self, name: str, password: str, roles: dict[str, list[str]]) -> User:
        user = self.users[name] = User(name, password, roles)
        return user

    def new_token(self, user: str, project: str | None) -> str:
        """A token as Keystone issues it."""
        text = f"gAAAAAB{uuid.uuid4().hex}-_=="
        expires = datetime.now(UTC) + timedelta(seconds=self.token_seconds)
        self.tokens[text] = Token(self.users[user], project, expires)
        return text

    def valid(self, text: str | None) -> Token | None:
        token = self.tokens.get(text or "")
        if token is None or token.expires_at <= datetime.now(UTC):
            return None
        if token.project is not None and not token.user.roles.get(token.project):
            return None
        return token

    def count(self, method: str, path: str = "/v3/auth/tokens") -> int:
        return sum(one.startswith(f"{method} {path}") for one in self.asked)

    def project(self, name: str) -> dict[str, Any]:
        return {"domain": DEFAULT_DOMAIN, "id": self.projects[name], "name": name}

    def document(self, token: Token) -> dict[str, Any]:
        """As GET /v3/auth/tokens?nocatalog prints it."""
        body: dict[str, Any] = {
            "methods": ["password"],
            "user": {
                "domain": DEFAULT_DOMAIN,
                "id": token.user.id,
                "name": token.user.name,
                "password_expires_at": None,
            },
            "audit_ids": ["vZ7P4lvVRrunx5KP1H0Eyw"],
            "expires_at": token.expires_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "issued_at": "2026-11-24T09:31:41.000000Z",
        }
        if token.project is not None:
            body["project"] = self.project(token.project)
            body["is_domain"] = False
            body["roles"] = [
                {"id": new_id(), "name": role} for role in token.user.roles[token.project]
            ]
        return {"token": body}


class Handler(BaseHTTPRequestHandler):
    """One connection, kept open between requests."""

    protocol_version = "HTTP/1.1"
    keystone: Keystone

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name for it
        """Says nothing."""

    def do_GET(self) -> None:
        self._handle(self._get)

    def do_POST(self) -> None:
        self._handle(self._post)

    def do_DELETE(self) -> None:
        self._handle(self._delete)

    def _handle(self, action: Callable[[bytes], None]) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.keystone.asked.append(f"{self.command} {self.path}")
        if self.keystone.fault is None or not self.keystone.fault(self):
            action(body)

    # -- operations ----------------------------------------------------------------------------

    def _get(self, _: bytes) -> None:
        caller = self.keystone.valid(self.headers["X-Auth-Token"])
        if caller is None:
            return self.refuse(401, "The request you have made requires authentication.")
        if self.path == "/v3/auth/projects":
            mine = [self.keystone.project(name) for name in caller.user.roles]
            return self.answer(200, {"projects": mine, "links": {"next": None}})
        assert self.path == "/v3/auth/tokens?nocatalog"
        own = self.headers["X-Auth-Token"] == self.headers["X-Subject-Token"]
        roles = caller.user.roles.get(caller.project or "", [])
        if not own and not {"admin", "service"} & set(roles):
            return self.refuse(403, "You are not authorized to perform the requested action")
        subject = self.keystone.valid(self.headers["X-Subject-Token"])
        if subject is None:
            return self.refuse(404, "Could not recognize Fernet token")
        return self.answer(200, self.keystone.document(subject))

    def _post(self, body: bytes) -> None:
        assert self.path == "/v3/auth/tokens?nocatalog"
        assert self.headers["Content-Type"] == "application/json"
        auth = json.loads(body)["auth"]
        user, fixed = self._who(auth["identity"])
        if user is None:
            return self.refuse(401, "The request you have made requires authentication.")
        project = fixed or user.default_project
        if "scope" in auth:
            assert fixed is None
            project = self._where(auth["scope"]["project"])
            if project is None or project not in user.roles:
                return self.refuse(401, "The request you have made requires authentication.")
        text = self.keystone.new_token(user.name, project)
        document = self.keystone.document(self.keystone.tokens[text])
        return self.answer(201, document, {"X-Subject-Token": text})

    def _who(self, identity: dict[str, Any]) -> tuple[User | None, str | None]:
        (method,) = identity["methods"]
        given = identity[method]
        if method == "token":
            token = self.keystone.valid(given["id"])
            return (token.user if token else None), None
        if method == "application_credential":
            secret, owner, project = self.keystone.application_credentials.get(
                given["id"], (None, None, None)
            )
            return (owner if secret == given["secret"] else None), project
        assert given["user"]["domain"] == {"name": "Default"}
        user = self.keystone.users.get(given["user"]["name"])
        right = user is not None and user.password == given["user"]["password"]
        return (user if right else None), None

    def _where(self, scope: dict[str, Any]) -> str | None:
        for name, number in self.keystone.projects.items():
            by_name = scope.get("name") == name and scope["domain"] == {"name": "Default"}
            if by_name or scope.get("id") == number:
                return name
        return None

    def _delete(self, _: bytes) -> None:
        if self.keystone.valid(self.headers["X-Auth-Token"]) is None:
            return self.refuse(401, "The request you have made requires authentication.")
        del self.keystone.tokens[self.headers["X-Subject-Token"]]
        return self.answer(204, None)

    # -- answers -------------------------------------------------------------------------------

    def answer(self, status: int, document: Any, headers: dict[str, str] | None = None) -> None:
        content = b"" if document is None else json.dumps(document).encode()
        self.answer_bytes(status, content, headers)

    def answer_bytes(
        self, status: int, content: bytes, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def refuse(self, status: int, message: str) -> None:
        error = {"code": status, "message": message, "title": "Title"}
        self.answer(status, {"error": error})


class Server(ThreadingHTTPServer):
    """Does not wait for clients that stay."""

    daemon_threads = True
    block_on_close = False


@contextmanager
def serving(tls: ssl.SSLContext | None = None, port: int = 0) -> Iterator[Keystone]:
    """A Keystone that answers, over TLS if a context is given."""
    keystone = Keystone()
    handler = type("BoundHandler", (Handler,), {"keystone": keystone})
    with Server(("127.0.0.1", port), handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        scheme = "http" if tls is None else "https"
        keystone.url = f"{scheme}://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield keystone
        finally:
            server.shutdown()
            thread.join()
