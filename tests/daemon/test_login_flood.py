"""A flood of logins: bounded in what it costs, while clients of disks and of the API go on."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from .process import serving

CLIENTS = 120
"""At once; more than may wait for their password to be looked at."""

PATIENCE_SECONDS = 120.0

BLOCK = 4096


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


def test_wrong_passwords_hold_up_nobody(pool: Path) -> None:
    with serving(pool, api_listen="127.0.0.1:0") as daemon:
        daemon.bock("volume", "create", "disk", "--size", "4M")
        known = json.loads((pool / "credentials.json").read_text())
        login = {"username": known["username"], "password": known["password"]}
        tenant = known["tenant_id"]
        url = daemon.api_url
        body = {"auth": {"passwordCredentials": login, "tenantId": tenant}}
        answer = httpx.post(f"{url}/v2.0/tokens", json=body, timeout=PATIENCE_SECONDS)
        token = answer.json()["access"]["token"]["id"]
        wrong = {"auth": {"passwordCredentials": {**login, "password": "guess"}}}

        def guess(_: int) -> int:
            return httpx.post(
                f"{url}/v2.0/tokens", json=wrong, timeout=PATIENCE_SECONDS
            ).status_code

        with daemon.connected("disk") as disk, httpx.Client(timeout=PATIENCE_SECONDS) as client:

            def use_disk(number: int) -> None:
                data = number.to_bytes(8, "big") * (BLOCK // 8)
                disk.pwrite(data, number % 1000 * BLOCK)
                assert bytes(disk.pread(BLOCK, number % 1000 * BLOCK)) == data

            def use_api(_: int) -> None:
                headers = {"X-Auth-Token": token}
                listed = client.get(f"{url}/v1.1/{tenant}/os-volumes", headers=headers)
                assert listed.status_code == 200, listed.text

            innocents = [Innocent(use_disk), Innocent(use_api)]
            for innocent in innocents:
                innocent.start()
            before = [innocent.done for innocent in innocents]
            with ThreadPoolExecutor(CLIENTS) as threads:
                answers = Counter(threads.map(guess, range(2 * CLIENTS)))
            during = [innocent.done - was for innocent, was in zip(innocents, before, strict=True)]
            for innocent in innocents:
                innocent.end()
        # Wrong, or not looked at: too many were waiting.
        assert answers.keys() <= {401, 429}, answers
        assert answers[401] >= 64, answers
        assert all(count > 5 for count in during), during
