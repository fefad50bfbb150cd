"""Tokens that prove themselves: signed, so that issuing one writes nothing and needs no space.

    token    base64url(claims) "." base64url(HMAC-SHA256(user's key, claims))
    claims   msgpack array: user name, tenant id, when it expires (seconds since the epoch), a nonce
    user's key   HMAC-SHA256(key, the user's state: id, epoch of the secrets, stored password)

The key is a file of its own in the data directory (mode 0600), not in the index: whoever reads the
index alone can make no token. (Where several gateways share a pool: bockd.identity.sharedkey.) A
user's tokens end when the user's state changes: with each new secret, and for good with the user.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import secrets
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bockd.blockstorage.contract import TenantId
from bockd.durable import replace_file
from bockd.errors import from_os_error

log = logging.getLogger(__name__)

KEY_FILE = "token.key"
"""In the data directory, readable by its owner only."""

KEY_BYTES = 32
NONCE_BYTES = 16
MAX_TOKEN_CHARACTERS = 2048
"""Of what is looked at; user names are at most 255 characters long."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says."""

    username: str
    tenant: TenantId
    expires_at: float


class _Signed(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    username: str
    tenant: TenantId
    expires_at: float
    nonce: bytes


def sign(claims: Claims, key: bytes, user_state: str) -> str:
    """Issue a new token, different from all others."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    signed = _Signed(claims.username, claims.tenant, claims.expires_at, nonce)
    body = msgspec.msgpack.encode(signed)
    return f"{_text(body)}.{_text(_mac(body, key, user_state))}"


@dataclass(frozen=True, slots=True)
class Presented:
    """A token of the right form, whose claims are not proved yet."""

    claims: Claims
    _body: bytes
    _mac: bytes

    def is_genuine(self, key: bytes, user_state: str) -> bool:
        """Return whether the token was signed with `key`, for a user in this state."""
        return hmac.compare_digest(self._mac, _mac(self._body, key, user_state))


def parse(token: str) -> Presented | None:
    """Parse a token into its parts; None for anything that has not exactly the form of a token."""
    if len(token) > MAX_TOKEN_CHARACTERS or not token.isascii():
        return None
    try:
        body, mac = (_bytes(part) for part in token.split("."))
        signed = msgspec.msgpack.decode(body, type=_Signed)
    except (ValueError, binascii.Error, msgspec.DecodeError):
        return None
    presented = Presented(Claims(signed.username, signed.tenant, signed.expires_at), body, mac)
    # Base64 has several texts for the same bytes; a token has one, under which it is revoked.
    return presented if f"{_text(body)}.{_text(mac)}" == token else None


def load_key(data_dir: Path) -> bytes:
    """Return the key of this data directory, and create it if there is none. If it cannot be
    written (the disk is full, or read-only) the key lives as long as this process. Blocks. Raise
    BockdError when it cannot be read."""
    path = data_dir / KEY_FILE
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        key = b""
    except OSError as error:
        raise from_os_error(error, f"reading {path}") from error
    if len(key) == KEY_BYTES:
        return key
    key = secrets.token_bytes(KEY_BYTES)
    try:
        replace_file(path, key)
    except OSError as error:
        log.warning("%s was not written, so tokens end with this process: %s", path, error)
    return key


def _mac(body: bytes, key: bytes, user_state: str) -> bytes:
    of_user = hmac.digest(key, user_state.encode(), hashlib.sha256)
    return hmac.digest(of_user, body, hashlib.sha256)


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
