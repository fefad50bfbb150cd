"""A daemon that runs by a configuration file, and a token of its first tenant."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.daemon.process import program


@contextmanager
def serving(config: Path, log: Path) -> Iterator[str]:
    """Run `bockd serve --config` for the duration; give its API's URL. It must end well."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("BOCKD_")}
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [program("bockd"), "serve", "--config", config],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environ,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            announced = ""
            for line in process.stdout:
                announced += line
                if line.startswith("Next: "):
                    break
            found = re.search(r"http://127\.0\.0\.1:\d+", announced)
            assert found, f"{announced}{log.read_text()}"
            yield found[0]
        finally:
            process.terminate()
    assert process.returncode == 0


def token_for(client: httpx.Client, data_dir: Path) -> dict[str, Any]:
    """Return what POST /v2.0/tokens answers to the first tenant."""
    known = json.loads((data_dir / "credentials.json").read_text())
    password = {"username": known["username"], "password": known["password"]}
    answer = client.post(
        "/v2.0/tokens",
        json={"auth": {"passwordCredentials": password, "tenantName": known["tenant"]}},
    )
    assert answer.status_code == 200, answer.text
    access: dict[str, Any] = answer.json()["access"]
    return access
