"""How the public API tells what went wrong inside: each error has its fault (section 4.4)."""

from __future__ import annotations

import pytest

from api.openstack.faults import STATUS_OF_ERROR
from bockd import errors
from bockd.blockstorage.contract import EVERYTHING, Page, TenantId, Volume
from bockd.publictexts import CLUSTER_REFUSES, CLUSTER_SILENT, OWN_TROUBLE, for_operator

from .memory_blockstorage import MemoryBlockStorage
from .public import Served, fault_of


class Failing(MemoryBlockStorage):
    """Raises what it was given, when it was given something."""

    error: Exception | None = None

    async def list_volumes(self, tenant: TenantId, page: Page = EVERYTHING) -> list[Volume]:
        if self.error is not None:
            raise self.error
        return await super().list_volumes(tenant, page)


@pytest.fixture
def storage() -> Failing:
    return Failing()


FAMILIES = [
    family
    for family in vars(errors).values()
    if isinstance(family, type) and issubclass(family, errors.BockdError)
]

SERVER_ERROR = {
    "cloudServersFault": {"message": "Server Error, please try again later.", "code": 500}
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_error_has_its_fault(
    served: Served, storage: Failing, family: type[errors.BockdError]
) -> None:
    """Trouble of the service itself is told without the error's text, which may name paths."""
    storage.error = family("why \udc80")
    expected = next((STATUS_OF_ERROR[one] for one in STATUS_OF_ERROR if issubclass(family, one)), 0)
    told = next((OWN_TROUBLE[one] for one in OWN_TROUBLE if issubclass(family, one)), "")
    with served.client() as client:
        answer = client.get("/os-volumes")
        if issubclass(family, errors.ClusterUnavailableError):
            assert fault_of(answer)[0::2] == (503, CLUSTER_SILENT)
        elif expected:
            assert fault_of(answer)[0::2] == (expected, "why \\udc80")
        elif told:
            assert fault_of(answer)[0::2] == (503, told)
        else:
            assert (answer.status_code, answer.json()) == (500, SERVER_ERROR)


def test_a_full_disk_is_told_without_a_path(
    served: Served, storage: Failing, caplog: pytest.LogCaptureFixture
) -> None:
    storage.error = errors.IndexFullError("the index /srv/pool/index/data.mdb is full")
    with served.client() as client:
        status, name, message = fault_of(client.get("/os-volumes"))
    assert (status, name) == (503, "serviceUnavailable")
    assert "no space left" in message
    assert "/srv" not in message
    assert "/srv/pool/index/data.mdb" in caplog.text


def test_of_a_cluster_in_trouble_one_text_is_told_and_the_whole_is_logged_once(
    served: Served, storage: Failing, caplog: pytest.LogCaptureFixture
) -> None:
    storage.error = errors.ClusterUnavailableError("client.bockd: 'ceph -s'; /etc/ceph/x.conf")
    with served.client() as client:
        for _ in range(3):
            told = fault_of(client.get("/os-volumes"))
            assert told == (503, "serviceUnavailable", CLUSTER_SILENT)
    assert caplog.text.count("client.bockd: 'ceph -s'; /etc/ceph/x.conf") == 1


def test_what_a_cluster_refuses_is_told_without_its_names(
    served: Served, storage: Failing, caplog: pytest.LogCaptureFixture
) -> None:
    storage.error = for_operator(errors.NotFoundError("looking at image 0a1b in pool7/space8"))
    with served.client() as client:
        told = fault_of(client.get("/os-volumes"))
        assert told == (404, "itemNotFound", CLUSTER_REFUSES)
    assert "image 0a1b in pool7/space8" in caplog.text


def test_too_many_requests(served: Served, storage: Failing) -> None:
    storage.error = errors.OverLimitError("too many", 7)
    with served.client() as client:
        answer = client.get("/os-volumes")
        assert fault_of(answer) == (429, "overLimit", "too many")
        assert answer.json()["overLimit"]["retryAfter"] == 7
        assert answer.headers["retry-after"] == "7"


def test_a_bug_is_a_server_error_and_is_logged(
    served: Served, storage: Failing, caplog: pytest.LogCaptureFixture
) -> None:
    storage.error = ZeroDivisionError("secret")
    with served.client() as client:
        answer = client.get("/os-volumes")
        assert (answer.status_code, answer.json()) == (500, SERVER_ERROR)
        assert client.get("/limits").status_code == 200
    assert "ZeroDivisionError: secret" in caplog.text
