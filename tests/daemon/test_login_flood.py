"""A flood of logins, wrong and right ones: bounded in what it costs, while clients of disks and of
the API go on."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from bockd.blockstorage.records import Ledger
from bockd.drivers.local.format.layout import Layout
from bockd.drivers.local.poolfiles import join_store
from bockd.index.index import LmdbIndex
from bockd.pool.index import Transaction
from tests.amounts import amount
from tests.hostile.live import resident_bytes

from .process import Bockd, serving

CLIENTS = 120
"""At once; more than may wait for their password to be looked at."""

PATIENCE_SECONDS = 120.0

BLOCK = 4096

AT_ONCE = 32
"""Half of what may wait."""

LOGINS = amount(10) * AT_ONCE

SLACK_BYTES = 64 << 20
"""What the allocator keeps of its use."""


class Innocent(threading.Thread):
    """Does one thing over and over until it is told to stop; keeps what went wrong."""

    def __init__(self, once: Callable[[int], None]) -> None:
        super().__init__()
        self.done = 0
        self.wrong: list[BaseException] = []
        self._once = once
        self._over = threading.Event()

    def run(self) -> None:
        try:
            while not self._over.is_set():
                self._once(self.done)
                self.done += 1
        except BaseException as error:  # noqa: BLE001 - shown by the test
            self.wrong.append(error)

    def end(self) -> None:
        self._over.set()
        self.join(PATIENCE_SECONDS)
        assert not self.is_alive(), "it hangs"
        assert not self.wrong, self.wrong


class Account:
    """What a client of the daemon's API logs in with."""

    def __init__(self, daemon: Bockd) -> None:
        known = json.loads((daemon.data_dir / "credentials.json").read_text())
        self.tenant: str = known["tenant_id"]
        self._login = {"username": known["username"], "password": known["password"]}
        self._url = daemon.api_url

    def log_in(self, client: httpx.Client, password: str | None = None) -> httpx.Response:
        """With its own password, or with another one."""
        login = self._login if password is None else {**self._login, "password": password}
        body = {"auth": {"passwordCredentials": login, "tenantId": self.tenant}}
        return client.post(f"{self._url}/v2.0/tokens", json=body)

    def token(self, client: httpx.Client) -> str:
        """A new one."""
        answer = self.log_in(client)
        assert answer.status_code == 200, answer.text
        token: str = answer.json()["access"]["token"]["id"]
        return token

    def volumes(self, client: httpx.Client, token: str) -> int:
        """The status of asking for them."""
        headers = {"X-Auth-Token": token}
        url = f"{self._url}/v1.1/{self.tenant}/os-volumes"
        return client.get(url, headers=headers).status_code


@contextmanager
def served_meanwhile(daemon: Bockd, account: Account) -> Iterator[None]:
    """A client of a disk and one of the API, who go on all the while."""
    with (
        daemon.connected("disk") as disk,
        httpx.Client(timeout=PATIENCE_SECONDS) as client,
    ):
        token = account.token(client)

        def use_disk(number: int) -> None:
            data = number.to_bytes(8, "big") * (BLOCK // 8)
            disk.pwrite(data, number % 1000 * BLOCK)
            assert bytes(disk.pread(BLOCK, number % 1000 * BLOCK)) == data

        def use_api(_: int) -> None:
            assert account.volumes(client, token) == 200

        innocents = [Innocent(use_disk), Innocent(use_api)]
        for innocent in innocents:
            innocent.start()
        before = [innocent.done for innocent in innocents]
        yield
        during = [innocent.done - was for innocent, was in zip(innocents, before, strict=True)]
        for innocent in innocents:
            innocent.end()
    assert all(count > 5 for count in during), during


def test_wrong_passwords_hold_up_nobody(pool: Path) -> None:
    with serving(pool, api_listen="127.0.0.1:0", is_forked=False) as daemon:
        daemon.bock("volume", "create", "disk", "--size", "4M")
        account = Account(daemon)

        def guess(_: int) -> int:
            with httpx.Client(timeout=PATIENCE_SECONDS) as client:
                return account.log_in(client, "guess").status_code

        with served_meanwhile(daemon, account), ThreadPoolExecutor(CLIENTS) as threads:
            answers = Counter(threads.map(guess, range(2 * CLIENTS)))
        # Wrong, or not looked at: too many were waiting.
        assert answers.keys() <= {401, 429}, answers
        assert answers[401] >= 64, answers


@dataclass(frozen=True)
class Size:
    """Of a daemon."""

    memory_bytes: int
    """Without the index, which is mapped."""
    index_bytes: int


def size_of(daemon: Bockd) -> Size:
    return Size(resident_bytes(daemon.pid, "RssAnon"), size_of_index(daemon.data_dir))


def size_of_index(pool: Path) -> int:
    """What it takes up; the file is longer, and sparse there."""
    return (pool / "index" / "data.mdb").stat().st_blocks * 512


def make_its_hash_cheap(daemon: Bockd) -> None:
    """For a stopped daemon: the account's password is stored as before, but by a scrypt that takes
    no time. The tokens of many logins are the subject, not that each takes a core for 40 ms."""
    known = json.loads((daemon.data_dir / "credentials.json").read_text())
    hashed = hashlib.scrypt(known["password"].encode(), salt=b"salt", n=64, r=8, p=1, dklen=32)

    def change(txn: Transaction) -> None:
        ledger = Ledger(txn)
        user = ledger.user(known["username"])
        assert user is not None
        cheap = f"scrypt$6$8$1${b'salt'.hex()}${hashed.hex()}"
        ledger.put_user(replace(user, password=cheap))

    with changing(daemon.data_dir) as index:
        index.update(change)


@contextmanager
def changing(pool: Path) -> Iterator[LmdbIndex]:
    """The index of a pool that no daemon serves."""
    store = join_store(Layout(pool))
    try:
        yield store.index
    finally:
        store.index.close()


def log_in_many_times(daemon: Bockd, account: Account, logins: int) -> list[str]:
    """By several clients at once, fewer than may wait; the tokens, all of which are kept."""

    def log_in_some(count: int) -> list[str]:
        with httpx.Client(timeout=PATIENCE_SECONDS) as client:
            return [account.token(client) for _ in range(count)]

    with ThreadPoolExecutor(AT_ONCE) as threads:
        each = threads.map(log_in_some, [logins // AT_ONCE] * AT_ONCE)
        return [token for tokens in each for token in tokens]


def test_real_logins_without_end(pool: Path) -> None:
    """Memory stays small, the index as it is; the tokens hold across a restart, a kill too."""
    with serving(pool, api_listen="127.0.0.1:0", is_forked=False) as daemon:
        daemon.bock("volume", "create", "disk", "--size", "4M")
        daemon.stop()
        make_its_hash_cheap(daemon)
        daemon.start()
        account = Account(daemon)
        log_in_many_times(daemon, account, 4 * AT_ONCE)
        before = size_of(daemon)
        with served_meanwhile(daemon, account):
            tokens = log_in_many_times(daemon, account, LOGINS)
        after = size_of(daemon)
        print(f"{before}, {LOGINS} logins later {after}")
        assert len(set(tokens)) == LOGINS
        assert after.memory_bytes <= before.memory_bytes + SLACK_BYTES
        assert after.index_bytes == before.index_bytes

        daemon.kill()
        daemon.start()
        again = Account(daemon)
        with httpx.Client(timeout=PATIENCE_SECONDS) as client:
            assert {again.volumes(client, token) for token in tokens[::50]} == {200}
