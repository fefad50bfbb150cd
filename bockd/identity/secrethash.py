"""How secrets are kept: passwords and secret keys by scrypt, tokens by SHA-256.

A stored secret reads `scrypt$<log2 n>$<r>$<p>$<salt>$<hash>`, salt and hash in hexadecimal. A token
is 32 random bytes, which nobody can guess from a fast hash.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Final

from bockd.errors import DamagedError

SCRYPT_LOG2_N: Final = 14
SCRYPT_R: Final = 8
SCRYPT_P: Final = 1
"""16 MiB and some 40 ms for each guess: RFC 7914's values for interactive logins."""

SALT_BYTES: Final = 16
HASH_BYTES: Final = 32
TOKEN_BYTES: Final = 32

MAX_SECRET_CHARACTERS: Final = 1024
"""Of a password or secret key that is looked at; longer ones are wrong."""


def new_secret() -> str:
    """Generate a random password, secret key or token, of letters, digits, "-" and "_"."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def hash_secret(secret: str) -> str:
    """Hash a secret for storage. This is slow by design: do not call it on the event loop."""
    salt = secrets.token_bytes(SALT_BYTES)
    digest = _scrypt(secret, salt, SCRYPT_LOG2_N, SCRYPT_R, SCRYPT_P)
    return f"scrypt${SCRYPT_LOG2_N}${SCRYPT_R}${SCRYPT_P}${salt.hex()}${digest.hex()}"


def verify_secret(secret: str, stored: str | None) -> bool:
    """Return whether `secret` is the stored one. The time it takes does not tell, also when nothing
    is stored because nobody has that name. This is slow by design: do not call it on the event
    loop."""
    fits = len(secret) <= MAX_SECRET_CHARACTERS
    kind, log2_n, r, p, salt, digest = _parts(stored or _NOBODY)
    if kind != "scrypt":
        raise DamagedError("a stored secret has an unknown form")
    found = _scrypt(secret if fits else "", bytes.fromhex(salt), int(log2_n), int(r), int(p))
    same = hmac.compare_digest(found, bytes.fromhex(digest))
    return same and fits and stored is not None


def digest_token(token: str) -> bytes:
    """Return the SHA-256 under which a token is stored."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _parts(stored: str) -> list[str]:
    parts = stored.split("$")
    if len(parts) != 6:
        raise DamagedError("a stored secret is malformed")
    return parts


def _scrypt(secret: str, salt: bytes, log2_n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(
        secret.encode("utf-8", "surrogatepass"),
        salt=salt,
        n=1 << log2_n,
        r=r,
        p=p,
        maxmem=256 * r * p << log2_n,
        dklen=HASH_BYTES,
    )


_NOBODY = (
    f"scrypt${SCRYPT_LOG2_N}${SCRYPT_R}${SCRYPT_P}${bytes(SALT_BYTES).hex()}"
    f"${bytes(HASH_BYTES).hex()}"
)
