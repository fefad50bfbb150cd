"""A storm's frontends to one life of the daemon: REST and control for operations, NBD for data."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbd

from bockd.cli.client import ControlClient
from bockd.errors import UnavailableError
from bockd.identity.credentialsfile import CREDENTIALS_FILE
from tests.crash.forked import ForkedDaemon
from tests.crash.rest import ANSWER_SECONDS, Rest

GONE = (OSError, http.client.HTTPException, nbd.Error, UnavailableError)
"""What a client sees when the daemon dies. Of a daemon that lives it is a failure."""

READ_BYTES = 32 << 20


class Client:
    """For one thread; `another` for a second one."""

    def __init__(self, pool: Path, daemon: ForkedDaemon, token: str = "") -> None:
        self._pool = pool
        self._daemon = daemon
        credentials = json.loads((pool / CREDENTIALS_FILE).read_text())
        self.rest = Rest(daemon.api_port, token, credentials["tenant_id"])
        if not token:
            self.rest.authenticate(credentials)
        self.control = ControlClient(pool / "api.sock", within_seconds=ANSWER_SECONDS)

    def another(self) -> Client:
        return Client(self._pool, self._daemon, self.rest.token)

    def close(self) -> None:
        self.rest.close()
        self.control.close()

    # -- NBD ---------------------------------------------------------------------------------

    def connect(self, export: str) -> Any:
        """A libnbd handle (python3-libnbd has no types)."""
        handle = nbd.NBD()
        handle.set_export_name(export)
        handle.connect_unix(str(self._pool / "nbd.sock"))
        return handle

    def read(self, export: str) -> bytes:
        """All of an export."""
        handle = self.connect(export)
        size = handle.get_size()
        content = b"".join(
            bytes(handle.pread(min(READ_BYTES, size - at), at)) for at in range(0, size, READ_BYTES)
        )
        handle.shutdown()
        return content

    # -- operations --------------------------------------------------------------------------

    def create(self, name: str, size_bytes: int, from_snapshot: str | None = None) -> None:
        document: dict[str, object] = {
            "display_name": name,
            "bockd": {"size_bytes": size_bytes},
        }
        if from_snapshot is not None:
            document["snapshot_id"] = self._snapshot(from_snapshot)
        self.rest.post("/volumes", {"volume": document})

    def delete(self, name: str) -> None:
        """Once the daemon has seen its clients go."""
        while (volume := self.control.show_volume(name)).connections:
            pass
        self.rest.delete(f"/volumes/{volume.id}")

    def snapshot(self, volume: str, name: str) -> None:
        number = self.control.show_volume(volume).id
        document = {"volume_id": number, "display_name": name, "force": True}
        self.rest.post("/snapshots", {"snapshot": document})

    def delete_snapshot(self, name: str) -> None:
        number = self._snapshot(name)
        while any(s.connections for s in self.control.list_snapshots() if s.id == number):
            pass
        self.rest.delete(f"/snapshots/{number}")

    def _snapshot(self, name: str) -> int:
        return next(shot.id for shot in self.control.list_snapshots() if shot.name == name)


class Errand(threading.Thread):
    """One operation, while the load goes on; the daemon may die of it."""

    def __init__(self, client: Client, operation: Callable[[Client], None]) -> None:
        super().__init__()
        self.done = False
        self._error: BaseException | None = None
        self._client = client.another()
        self._operation = operation
        self.start()

    def run(self) -> None:
        try:
            self._operation(self._client)
            self.done = True
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self._error = error
        finally:
            self._client.close()

    def end(self, *, died: bool = False) -> bool:
        """Wait for it. True when it was done; False only if the daemon has died meanwhile."""
        self.join()
        if self._error is not None and not (died and isinstance(self._error, GONE)):
            raise self._error
        return self.done
