"""Whatever is wrong with Keystone, or with us at Keystone, is one UnavailableError, a line in the
log, and over as soon as it is mended."""

from __future__ import annotations

import logging
import ssl
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from bockd.config.sections import KeystoneSettings
from bockd.errors import InvalidRequestError, OverLimitError, UnavailableError
from bockd.identity.contract import PasswordCredentials
from bockd.identity.keystone import exchange
from bockd.identity.keystone.client import PAUSE_SECONDS
from bockd.identity.keystone.exchange import MAX_ANSWER_BYTES
from bockd.identity.keystone.identity import KeystoneIdentity
from tests.tls.authority import Authority

from .asking import TEST_SECONDS, Clocks, asking
from .server import SERVICE_PASSWORD, Fault, Handler, Keystone, serving

ALICE = PasswordCredentials("alice", "wonderland")


# -- the service user ------------------------------------------------------------------------------


def test_a_service_token_that_has_ended_is_renewed_once(
    keystone: Keystone, settings: KeystoneSettings
) -> None:
    async def scenario(identity: KeystoneIdentity, _: Clocks) -> None:
        await identity.validate_token(keystone.new_token("alice", "acme"))
        keystone.tokens.clear()
        await identity.validate_token(keystone.new_token("alice", "acme"))
        assert keystone.asked == [
            "POST /v3/auth/tokens?nocatalog",
            "GET /v3/auth/tokens?nocatalog",
            "GET /v3/auth/tokens?nocatalog",
            "POST /v3/auth/tokens?nocatalog",
            "GET /v3/auth/tokens?nocatalog",
        ]

    asking(settings, scenario)


def test_many_who_find_it_ended_renew_it_once(
    keystone: Keystone, settings: KeystoneSettings
) -> None:
    async def scenario(identity: KeystoneIdentity, _: Clocks) -> None:
        await identity.validate_token(keystone.new_token("alice", "acme"))
        keystone.tokens.clear()
        async with trio.open_nursery() as nursery:
            for _number in range(20):
                token = keystone.new_token("alice", "acme")
                nursery.start_soon(identity.validate_token, token)
        assert keystone.count("POST") == 2

    asking(settings, scenario)


def test_a_service_token_that_is_never_taken_is_no_loop(
    keystone: Keystone, settings: KeystoneSettings
) -> None:
    def refuse(handler: Handler) -> bool:
        if handler.command == "GET":
            handler.refuse(401, "The request you have made requires authentication.")
        return handler.command == "GET"

    keystone.fault = refuse
    with pytest.raises(UnavailableError):
        asking(settings, lambda identity, _: identity.validate_token("x"))
    assert (keystone.count("POST"), keystone.count("GET")) == (2, 2)


def test_a_wrong_password_is_tried_now_and_then_and_may_be_mended(
    keystone: Keystone, settings: KeystoneSettings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert settings.password_file is not None
    password = settings.password_file
    password.write_text("wrong-password-x3")
    token = keystone.new_token("alice", "acme")

    async def scenario(identity: KeystoneIdentity, clocks: Clocks) -> None:
        for _ in range(5):
            with pytest.raises(UnavailableError, match="identity service cannot be asked now"):
                await identity.validate_token(token)
        assert keystone.count("POST") == 1  # a user is locked out after a few
        password.write_text(SERVICE_PASSWORD)
        clocks.forward(PAUSE_SECONDS)
        await identity.validate_token(token)

    asking(settings, scenario)
    warning, good = [record.getMessage() for record in caplog.records]
    assert warning == (
        "Keystone cannot be used: it refuses user 'bockd' in project 'service' (status 401): "
        "check [keystone] and the password"
    )
    assert good == "Keystone can be used again"


def test_a_password_file_that_goes_bad_later(
    keystone: Keystone, settings: KeystoneSettings, caplog: pytest.LogCaptureFixture
) -> None:
    path = settings.password_file
    assert path is not None

    async def scenario(identity: KeystoneIdentity, _: Clocks) -> None:
        path.chmod(0o644)
        with pytest.raises(UnavailableError):
            await identity.validate_token("x")

    asking(settings, scenario)
    assert "others may read" in caplog.text
    assert keystone.asked == []


def test_a_service_user_who_may_not_validate(
    keystone: Keystone, settings: KeystoneSettings, caplog: pytest.LogCaptureFixture
) -> None:
    keystone.users["bockd"].roles["service"] = ["member"]
    with pytest.raises(UnavailableError):
        asking(settings, lambda identity, _: identity.validate_token("x"))
    assert "give it the role service in project 'service'" in caplog.text


# -- Keystone and the way there --------------------------------------------------------------------


def broken_off(handler: Handler) -> bool:
    handler.close_connection = True
    return True


def half_an_answer(handler: Handler) -> bool:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"{")
    handler.close_connection = True
    return True


def answers(status: int, content: bytes, **headers: str) -> Fault:
    def fault(handler: Handler) -> bool:
        handler.answer_bytes(status, content, headers)
        return True

    return fault


def issues(content: str, token: str = "t") -> Fault:
    return answers(201, content.encode(), **{"X-Subject-Token": token})


GOOD = (
    '{"token": {"user": {"id": "u", "name": "n"}, "expires_at": "2099-01-01T00:00:00.000000Z", '
    '"project": {"id": "p", "name": "n"}, "roles": []}}'
)

FAULTS: dict[str, tuple[Fault, str]] = {
    "500": (answers(500, b"{}"), "it answers with status 500"),
    "503": (answers(503, b""), "it answers with status 503"),
    "429": (answers(429, b""), "answers /auth/tokens?nocatalog with status 429"),
    "redirect": (answers(301, b"", Location="http://192.0.2.1/"), "with status 301"),
    "hang-up": (broken_off, "disconnected without sending a response"),
    "half": (half_an_answer, "peer closed connection without sending complete message body"),
    "not JSON": (issues("<html>"), "its answer is no OneToken"),
    "not UTF-8": (
        answers(201, b'{"token": "\xff"}'),
        "its answer is no OneToken",
    ),
    "other JSON": (issues('{"access": {}}'), "its answer is no OneToken"),
    "no user": (issues('{"token": {"expires_at": "2099-01-01T00:00:00Z"}}'), "no OneToken"),
    "no time": (issues(GOOD.replace("2099-01", "2099-99")), "month must be in 1..12"),
    "no time zone": (issues(GOOD.replace("00Z", "00")), "names no time zone"),
    "a bad project": (issues(GOOD.replace('"p"', '"p/\\u0000"')), "is no project's id"),
    "no token": (issues(GOOD, ""), "no token that a header can carry"),
    "an awkward token": (issues(GOOD, "a b"), "no token that a header can carry"),
    "huge": (answers(201, b" " * (MAX_ANSWER_BYTES + 1)), "its answer is larger than 1048576"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_trouble_is_one_error_and_passes(
    keystone: Keystone,
    settings: KeystoneSettings,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    caplog.set_level(logging.INFO)
    token = keystone.new_token("alice", "acme")
    keystone.fault, reason = FAULTS[name]

    async def scenario(identity: KeystoneIdentity, clocks: Clocks) -> None:
        for _ in range(3):
            with pytest.raises(UnavailableError, match="try again later"):
                await identity.validate_token(token)
            with pytest.raises(UnavailableError, match="try again later"):
                await identity.issue_token(ALICE, "acme")
            clocks.forward(PAUSE_SECONDS)
        keystone.fault = None
        await identity.validate_token(token)

    asking(settings, scenario)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert messages[0].startswith("Keystone cannot be used: ")
    assert reason in messages[0]
    assert messages[1] == "Keystone can be used again"


def test_a_connection_that_was_closed_meanwhile_is_not_an_error(
    keystone: Keystone, settings: KeystoneSettings
) -> None:
    """As servers do with idle connections, just when the next request comes."""
    dropped: list[str] = []

    def drop_once(handler: Handler) -> bool:
        if handler.command == "GET" and not dropped:
            dropped.append(handler.path)
            return broken_off(handler)
        return False

    token = keystone.new_token("alice", "acme")
    keystone.fault = drop_once
    asking(settings, lambda identity, _: identity.validate_token(token))
    assert len(dropped) == 1


def test_keystone_is_unavailable_when_nobody_listens(
    settings: KeystoneSettings, caplog: pytest.LogCaptureFixture
) -> None:
    with serving() as gone:
        url = gone.url
    with pytest.raises(UnavailableError):
        asking(replace(settings, url=url), lambda identity, _: identity.validate_token("x"))
    assert "Keystone cannot be used: " in caplog.text


def test_no_answer_in_time(
    keystone: Keystone, settings: KeystoneSettings, caplog: pytest.LogCaptureFixture
) -> None:
    finished = threading.Event()

    def hang(_: Handler) -> bool:
        return finished.wait(TEST_SECONDS)

    keystone.fault = hang
    try:
        with pytest.raises(UnavailableError):
            asking(
                replace(settings, timeout_seconds=1),
                lambda identity, _: identity.validate_token("x"),
            )
    finally:
        finished.set()
    assert "no answer within 1 seconds" in caplog.text


def test_too_many_who_wait_are_told_to_come_back(
    keystone: Keystone, settings: KeystoneSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "MAX_PENDING", 3)
    answer = threading.Event()

    def wait(handler: Handler) -> bool:
        if handler.command == "GET":
            answer.wait(TEST_SECONDS)
        return False

    outcomes: list[int] = []

    async def scenario(identity: KeystoneIdentity, _: Clocks) -> None:
        async def ask() -> None:
            try:
                await identity.validate_token(keystone.new_token("alice", "acme"))
            except OverLimitError as error:
                outcomes.append(error.retry_after_seconds)
                if len(outcomes) == 7:
                    answer.set()

        # The service token is there, so that all ten arrive at the same place.
        await identity.validate_token(keystone.new_token("alice", "acme"))
        keystone.fault = wait
        async with trio.open_nursery() as nursery:
            for _number in range(10):
                nursery.start_soon(ask)

    asking(settings, scenario)
    assert outcomes == [1] * 7


# -- TLS -------------------------------------------------------------------------------------------


def test_tls_is_verified(
    settings: KeystoneSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours, other = Authority(tmp_path / "ours"), Authority(tmp_path / "other")
    shown = ours.issue("keystone")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(shown.certificate, shown.key)
    with serving(context) as keystone:
        token = keystone.new_token("alice", "acme")
        trusting = replace(settings, url=keystone.url, ca_file=ours.ca.certificate)
        asking(trusting, lambda identity, _: identity.validate_token(token))
        for untrusted in (None, other.ca.certificate):
            caplog.clear()
            distrusting = replace(trusting, ca_file=untrusted)
            with pytest.raises(UnavailableError):
                asking(distrusting, lambda identity, _: identity.validate_token(token))
            assert "certificate verify failed" in caplog.text


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN CERTIFICATE-----\n"])
def test_certificates_that_cannot_be_read(
    settings: KeystoneSettings, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidRequestError, match=r"^keystone\.ca_file: .* holds no certificates"):
        asking(replace(settings, ca_file=path), lambda identity, _: identity.validate_token("x"))


def test_plain_http_to_another_machine_is_warned_of(
    settings: KeystoneSettings, caplog: pytest.LogCaptureFixture
) -> None:
    async def nothing(_: KeystoneIdentity, __: Clocks) -> None:
        await trio.lowlevel.checkpoint()

    asking(settings, nothing)
    assert caplog.text == ""
    asking(replace(settings, url="http://192.0.2.1:5000"), nothing)
    assert "unencrypted: keystone.url is http://192.0.2.1:5000" in caplog.text
