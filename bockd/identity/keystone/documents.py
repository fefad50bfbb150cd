"""The documents of Keystone's Identity API v3, as far as they are used: received and sent."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

TOKEN_TEXT = re.compile(r"[!-~]{1,8192}")
"""What may stand in a header as a token: visible ASCII, and no more than HTTP servers take. Fernet
tokens have some 200 characters, JWS tokens up to 2,000."""

PROJECT_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""Keystone's column has 64 characters, and its own ids are 32 hexadecimal digits. It becomes part
of paths and of keys in the index, so that nothing else may stand in it."""

OWN_ID = re.compile(r"[0-9a-f]{32}")
"""An id as Keystone makes them; a project that is meant by anything else is meant by its name."""


class Project(msgspec.Struct, frozen=True):
    """A project: what tenants are called since version 3."""

    id: str
    name: str


class User(msgspec.Struct, frozen=True):
    """Whose token it is."""

    id: str
    name: str


class Role(msgspec.Struct, frozen=True):
    """What the user may be in the project."""

    name: str


class Token(msgspec.Struct, frozen=True):
    """What a token means. Without a project it is unscoped, or for a domain or the whole system."""

    user: User
    expires_at: str
    project: Project | None = None
    roles: tuple[Role, ...] = ()

    @property
    def expires(self) -> float:
        """Seconds since the epoch. Raises ValueError for what is no time with its zone."""
        moment = datetime.fromisoformat(self.expires_at)
        if moment.tzinfo is None:
            raise ValueError(f"{self.expires_at!r} names no time zone")
        return moment.timestamp()


class OneToken(msgspec.Struct, frozen=True):
    """`{"token": {...}}`."""

    token: Token


class ProjectList(msgspec.Struct, frozen=True):
    """`{"projects": [...]}`."""

    projects: tuple[Project, ...]


def decode(kind: type[T], content: bytes) -> T:
    """Decode a document of a kind. Raise ValueError when it is not of that kind."""
    try:
        found = msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ValueError(f"its answer is no {kind.__name__}: {error}") from error
    return found


def decode_token(content: bytes) -> Token:
    """Decode a token's document and check all its parts. Raises ValueError."""
    token = decode(OneToken, content).token
    _ = token.expires
    if token.project is not None and not PROJECT_ID.fullmatch(token.project.id):
        raise ValueError(f"{token.project.id[:64]!r} is no project's id")
    return token


# -- what is sent ----------------------------------------------------------------------------------

Identity = dict[str, Any]
Scope = dict[str, Any]


def by_password(user: str, password: str, domain: str) -> Identity:
    """Return the identity of a user by name and password, in a domain by name."""
    return {
        "methods": ["password"],
        "password": {"user": {"name": user, "domain": {"name": domain}, "password": password}},
    }


def by_application_credential(credential: str, secret: str) -> Identity:
    """Return the identity of an application credential by its id. Its project is fixed."""
    return {
        "methods": ["application_credential"],
        "application_credential": {"id": credential, "secret": secret},
    }


def by_token(token: str) -> Identity:
    """Return the identity of another token's user."""
    return {"methods": ["token"], "token": {"id": token}}


def in_project(project: str, domain: str) -> Scope:
    """Return the scope of a project: by id if the text looks like one, else by name in a domain."""
    if OWN_ID.fullmatch(project):
        return {"project": {"id": project}}
    return {"project": {"name": project, "domain": {"name": domain}}}


def request_body(identity: Identity, scope: Scope | None) -> bytes:
    """Return the body of POST /v3/auth/tokens. Raise ValueError for text that UTF-8 cannot encode:
    JSON may contain half of a surrogate pair."""
    auth: dict[str, Any] = {"identity": identity}
    if scope is not None:
        auth["scope"] = scope
    return msgspec.json.encode({"auth": auth})
