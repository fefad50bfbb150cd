"""The key that signs tokens (bockd.identity.tokens), where several daemons serve one pool.

A token that one daemon issues is good at all of them, so the key is in the index that they share,
and not in a data directory. Whoever reads that index can read all volumes, too. Only a process that
serves such a pool imports this: other indexes have no such table.
"""

from __future__ import annotations

import secrets

from bockd.errors import DamagedError
from bockd.identity.tokens import KEY_BYTES
from bockd.index.tables import Table
from bockd.pool.index import Index, Transaction

TOKEN_KEY = Table(b"token-key")
_KEY = b"key"


def shared_key(index: Index) -> bytes:
    """Return the key of a pool, and make it if there is none. Blocks. Raises BockdError."""
    new = secrets.token_bytes(KEY_BYTES)

    def change(txn: Transaction) -> bytes:
        found = txn.get(TOKEN_KEY, _KEY)
        if found is None:
            txn.put(TOKEN_KEY, _KEY, new)
        return found or new

    key = index.update(change)
    if len(key) != KEY_BYTES:
        raise DamagedError(f"the key of the tokens has {len(key)} bytes in the index")
    return key
