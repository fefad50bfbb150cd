"""Keystone's operations, as bockd needs them.

Tokens of others are validated with the *service token*: that of the service user from the
configuration. It is asked for when it is first needed and when Keystone does not know it any more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from bockd.errors import (
    BockdError,
    ForbiddenError,
    InvalidRequestError,
    UnauthorizedError,
    UnavailableError,
)
from bockd.identity.keystone.documents import (
    TOKEN_TEXT,
    Identity,
    Project,
    ProjectList,
    Scope,
    Token,
    by_password,
    decode,
    decode_token,
    in_project,
    request_body,
)
from bockd.identity.keystone.exchange import NOT_NOW, SUBJECT_TOKEN, Answer, Exchange

TOKENS = "/auth/tokens?nocatalog"
PROJECTS = "/auth/projects"
AUTH_TOKEN = "X-Auth-Token"  # noqa: S105 - the name of a header

OK, CREATED, NO_CONTENT = 200, 201, 204
BAD_REQUEST, UNAUTHORIZED, FORBIDDEN, NOT_FOUND = 400, 401, 403, 404

NOT_LET_IN = frozenset({BAD_REQUEST, UNAUTHORIZED, FORBIDDEN, NOT_FOUND})
"""Answers that mean: not with these credentials, or not into this project. A name that Keystone's
schema does not admit is a 400."""

PAUSE_SECONDS = 5.0
"""After the service user could not be authenticated, before it is tried again: many requests with a
wrong password would get it locked out, and those who wait need not wait in turn."""


@dataclass(frozen=True, slots=True)
class ServiceUser:
    """As whom bockd validates tokens. `password` is read anew each time, so that it can change."""

    name: str
    domain: str
    project: str
    project_domain: str
    password: Callable[[], str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Issued:
    """A new token."""

    text: str = field(repr=False)
    token: Token


class KeystoneClient:
    """Raises UnavailableError from every method when Keystone cannot be asked."""

    def __init__(self, exchange: Exchange, user: ServiceUser, elapsed: Callable[[], float]) -> None:
        """`elapsed` is a clock that never jumps."""
        self._exchange = exchange
        self._user = user
        self._elapsed = elapsed
        self._service_token: str | None = None
        self._renewing = trio.Lock()
        self._pausing_until = float("-inf")

    async def validate(self, token: str) -> Token:
        """Validate a token and return its meaning. Raise UnauthorizedError when it is not, or no
        longer, valid."""
        answer = await self._ask_as_service("GET", TOKENS, token)
        if answer.status in (NOT_FOUND, BAD_REQUEST):
            self._exchange.well()
            raise unknown_token()
        found = self._token(answer, OK)
        self._exchange.well()
        return found

    async def authenticate(self, identity: Identity, scope: Scope | None) -> Issued:
        """Obtain a token for a client's credentials. Raise UnauthorizedError when they, or the
        scope, are wrong."""
        try:
            body = request_body(identity, scope)
        except ValueError:
            raise wrong_credentials() from None
        answer = await self._exchange.ask("POST", TOKENS, {}, body)
        if answer.status in NOT_LET_IN:
            raise wrong_credentials()
        return self._issued(answer)

    async def projects(self, token: str) -> tuple[Project, ...]:
        """Return the projects in which a token's user has a role. Raise UnauthorizedError for an
        invalid token."""
        answer = await self._exchange.ask("GET", PROJECTS, {AUTH_TOKEN: checked(token)})
        if answer.status == UNAUTHORIZED:
            raise unknown_token()
        if answer.status != OK:
            raise self._exchange.unavailable(f"it answers {PROJECTS} with {answer.status}")
        try:
            return decode(ProjectList, answer.body).projects
        except ValueError as error:
            raise self._exchange.unavailable(str(error)) from error

    async def revoke(self, token: str) -> None:
        """Revoke a token with its own authority. Raise UnauthorizedError when it has ended
        already."""
        headers = {AUTH_TOKEN: checked(token), SUBJECT_TOKEN: token}
        answer = await self._exchange.ask("DELETE", "/auth/tokens", headers)
        if answer.status in (UNAUTHORIZED, NOT_FOUND):
            raise unknown_token()
        if answer.status == FORBIDDEN:
            raise ForbiddenError("Keystone does not let this token be revoked")
        if answer.status != NO_CONTENT:
            raise self._exchange.unavailable(f"it answers a revocation with {answer.status}")

    # -- as the service user -------------------------------------------------------------------

    async def _ask_as_service(self, method: str, path: str, subject: str) -> Answer:
        """An answer about another's token. Once more with a new service token, should Keystone not
        know the one that we have."""
        subject = checked(subject)
        ours = await self._service(None)
        for last in (False, True):
            headers = {AUTH_TOKEN: ours, SUBJECT_TOKEN: subject}
            answer = await self._exchange.ask(method, path, headers)
            if answer.status == FORBIDDEN:
                raise self._exchange.unavailable(
                    f"user {self._user.name!r} may not validate tokens: give it the role service "
                    f"in project {self._user.project!r}"
                )
            if answer.status != UNAUTHORIZED or last:
                break
            ours = await self._service(ours)
        return answer

    async def _service(self, stale: str | None) -> str:
        """Our own token: a new one if there is none, or only this one that has ended."""
        async with self._renewing:
            if self._service_token is None or self._service_token == stale:
                self._service_token = None
                self._service_token = await self._renew()
            return self._service_token

    async def _renew(self) -> str:
        """A new service token. After a failure those who wait fail at once, for a while."""
        if self._elapsed() < self._pausing_until:
            raise UnavailableError(NOT_NOW)
        try:
            return await self._authenticate_service()
        except BockdError:
            self._pausing_until = self._elapsed() + PAUSE_SECONDS
            raise

    async def _authenticate_service(self) -> str:
        user = self._user
        try:
            who = by_password(user.name, user.password(), user.domain)
            body = request_body(who, in_project(user.project, user.project_domain))
        except InvalidRequestError as error:  # the file is not any more what it was at the start
            raise self._exchange.unavailable(str(error)) from error
        answer = await self._exchange.ask("POST", TOKENS, {}, body)
        if answer.status in NOT_LET_IN:
            raise self._exchange.unavailable(
                f"it refuses user {user.name!r} in project {user.project!r} (status "
                f"{answer.status}): check [keystone] and the password"
            )
        return self._issued(answer).text

    # -- answers -------------------------------------------------------------------------------

    def _token(self, answer: Answer, expected: int) -> Token:
        if answer.status != expected:
            raise self._exchange.unavailable(f"it answers {TOKENS} with status {answer.status}")
        try:
            token = decode_token(answer.body)
        except ValueError as error:
            raise self._exchange.unavailable(str(error)) from error
        return token

    def _issued(self, answer: Answer) -> Issued:
        token = self._token(answer, CREATED)
        if not TOKEN_TEXT.fullmatch(answer.subject_token):
            raise self._exchange.unavailable("it issues no token that a header can carry")
        return Issued(answer.subject_token, token)


def checked(token: str) -> str:
    """Return a client's token if a header can carry it; raise UnauthorizedError otherwise."""
    if not TOKEN_TEXT.fullmatch(token):
        raise unknown_token()
    return token


def wrong_credentials() -> UnauthorizedError:
    """Return the error for credentials that Keystone does not accept, whatever is wrong with
    them."""
    return UnauthorizedError("the credentials are wrong, or not for this tenant")


def unknown_token() -> UnauthorizedError:
    """Return the error for a token that Keystone does not know, or no longer knows."""
    return UnauthorizedError("the token is unknown or has expired; ask for a new one")
