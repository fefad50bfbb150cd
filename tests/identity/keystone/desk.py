"""The configuration of a daemon whose tokens come from Keystone, and requests with such a token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from bockd.config.sections import KeystoneSettings

FILE = """\
data_dir = "{data_dir}"
log_level = "debug"
[nbd]
listen = "none"
[api]
listen = "127.0.0.1:0"
[keystone]
url = "{settings.url}"
username = "{settings.username}"
password_file = "{settings.password_file}"
cache_seconds = 0
local = {local}
"""


class Desk:
    """Where a configuration and a log are."""

    def __init__(self, directory: Path, settings: KeystoneSettings) -> None:
        self.data_dir = directory / "pool"
        self.config = directory / "bockd.toml"
        self.log = directory / "bockd.log"
        self.settings = settings

    def configure(self, *, local: bool = True) -> None:
        text = FILE.format(
            data_dir=self.data_dir, settings=self.settings, local="true" if local else "false"
        )
        self.config.write_text(text)


def volumes(client: httpx.Client, project: str, token: str) -> tuple[int, Any]:
    """Ask for the volumes of a project; return the status and the body of the answer."""
    answer = client.get(f"/v1.1/{project}/os-volumes", headers={"X-Auth-Token": token})
    return answer.status_code, answer.json()
