"""A request waits until the index is up to date, before anything is looked up for it."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from api.app import Together, create_app
from api.openstack.app import create_public_app
from bockd.errors import BockdError, ClusterUnavailableError, DamagedError, UnavailableError
from bockd.publictexts import CLUSTER_SILENT

from .appserver import serving_app
from .memory_blockstorage import MemoryBlockStorage
from .memory_control import MemoryControl
from .memory_identity import ALICE, DEMO, MemoryIdentity
from .memory_images import MemoryImages


class Following:
    """An index whose changes by others are seen at the next refresh."""

    def __init__(self, control: MemoryControl) -> None:
        self.control = control
        self.error: BockdError | None = None
        self.waiting: list[str] = []
        """Volumes that others have made."""
        self.count = 0

    async def __call__(self) -> None:
        self.count += 1
        if self.error is not None:
            raise self.error
        while self.waiting:
            self.control.add_volume(self.waiting.pop())


def test_it_is_up_to_date_before_each_request_is_looked_at(tmp_path: Path) -> None:
    control = MemoryControl(tmp_path)
    refresh = Following(control)
    public = create_public_app(MemoryBlockStorage(), MemoryIdentity(), refresh=refresh)
    app = Together(create_app(control, MemoryImages(), refresh=refresh), public)
    with serving_app(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        refresh.waiting.append("theirs")
        (found,) = client.get("/control/v1/volumes").json()
        assert (found["name"], refresh.count) == ("theirs", 1)
        # A token, too, is looked up.
        assert client.get(f"/v1.1/{DEMO.id}/os-volumes").status_code == 401
        assert refresh.count == 2
        password = {"username": ALICE.name, "password": ALICE.password}
        made = client.post("/v2.0/tokens", json={"auth": {"passwordCredentials": password}})
        assert (made.status_code, refresh.count) == (200, 3)


@pytest.mark.parametrize(
    ("error", "status", "public_text"),
    [
        (UnavailableError("stopping"), 503, "stopping"),
        (ClusterUnavailableError("'ceph -s' says how it is"), 503, CLUSTER_SILENT),
        (DamagedError("the log lacks 7"), 500, "Server Error, please try again later."),
    ],
)
def test_each_api_says_in_its_own_way_why_it_cannot_be(
    tmp_path: Path, error: BockdError, status: int, public_text: str
) -> None:
    """Nobody who has not shown a token is told of the operator's commands, users and files."""
    control = MemoryControl(tmp_path)
    refresh = Following(control)
    refresh.error = error
    public = create_public_app(MemoryBlockStorage(), MemoryIdentity(), refresh=refresh)
    app = Together(create_app(control, MemoryImages(), refresh=refresh), public)
    with serving_app(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        answer = client.get("/control/v1/volumes")
        assert answer.status_code == status
        assert answer.json() == {"error": {"code": error.code, "message": str(error)}}
        answer = client.get(f"/v1.1/{DEMO.id}/os-volumes")
        assert answer.status_code == status
        ((_, detail),) = answer.json().items()
        assert detail == {"message": public_text, "code": status}
