"""Who may use the public API: tokens for credentials, the catalog, and whom it turns away."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from api.openstack.catalog import Catalog, Zone

from .memory_identity import ALICE, DEMO, MemoryIdentity
from .public import Served, Service, always, fault_of, serving

PASSWORD = {"username": ALICE.name, "password": ALICE.password}
KEYS = {"accessKey": ALICE.access_key, "secretKey": ALICE.secret_key}


def ask(served: Served, auth: object) -> httpx.Response:
    return httpx.post(f"{served.url}/v2.0/tokens", json={"auth": auth})


@pytest.mark.parametrize(
    "credentials", [{"passwordCredentials": PASSWORD}, {"apiAccessKeyCredentials": KEYS}]
)
@pytest.mark.parametrize(
    "tenant", [{}, {"tenantId": DEMO.id}, {"tenantName": DEMO.name}, {"tenantId": None}]
)
def test_tokens(served: Served, credentials: dict[str, Any], tenant: dict[str, Any]) -> None:
    answer = ask(served, {**credentials, **tenant})
    assert answer.status_code == 200
    access = answer.json()["access"]
    assert access["token"]["tenant"] == {"id": DEMO.id, "name": "demo", "enabled": True}
    assert access["token"]["expires"] == "2100-01-01T00:00:00Z"
    assert access["user"] == {"id": "u1", "name": "alice", "roles": [{"name": "member"}]}
    token = {"X-Auth-Token": access["token"]["id"]}
    endpoint = access["serviceCatalog"][0]["endpoints"][0]["publicURL"]
    assert httpx.get(f"{endpoint}/os-volumes", headers=token).status_code == 200
    tenants = httpx.get(f"{served.url}/v2.0/tenants", headers=token).json()
    assert tenants == {"tenants": [{"id": DEMO.id, "name": "demo", "enabled": True}]}


def test_a_revoked_token_is_refused(served: Served) -> None:
    auth = {"passwordCredentials": PASSWORD}
    token, other = (ask(served, auth).json()["access"]["token"]["id"] for _ in range(2))
    revoked = f"{served.url}/v2.0/tokens/{token}"
    assert httpx.delete(revoked).status_code == 401
    headers = {"X-Auth-Token": other}
    assert httpx.delete(revoked, headers=headers).status_code == 204
    assert fault_of(httpx.delete(revoked, headers=headers))[:2] == (404, "itemNotFound")
    tenants = f"{served.url}/v2.0/tenants"
    assert httpx.get(tenants, headers={"X-Auth-Token": token}).status_code == 401
    assert httpx.get(tenants, headers=headers).status_code == 200


def test_wrong_credentials(served: Served) -> None:
    attempts: list[dict[str, Any]] = [
        {"passwordCredentials": {**PASSWORD, "password": "x"}},
        {"passwordCredentials": {**PASSWORD, "username": "x"}},
        {"apiAccessKeyCredentials": {**KEYS, "secretKey": "x"}},
        {"passwordCredentials": PASSWORD, "tenantName": "other"},
        {"passwordCredentials": PASSWORD, "tenantId": "../demo"},
    ]
    for auth in attempts:
        answer = ask(served, auth)
        assert fault_of(answer)[:2] == (401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Keystone"


def test_malformed_credentials(served: Served) -> None:
    attempts: list[Any] = [
        None,
        [],
        {},
        {"tenantName": "demo"},
        {"passwordCredentials": PASSWORD, "apiAccessKeyCredentials": KEYS},
        {"passwordCredentials": {"username": "alice"}},
        {"passwordCredentials": {"username": "alice", "password": 7}},
        {"passwordCredentials": "alice"},
        {"passwordCredentials": PASSWORD, "tenantName": 7},
    ]
    for auth in attempts:
        assert fault_of(ask(served, auth))[:2] == (400, "badRequest"), auth


def test_the_catalog_is_as_documented(served: Served) -> None:
    catalog = Catalog(
        tuple(Zone(f"az-{n}.region-a.geo-1", f"https://az-{n}.example.com/") for n in (1, 3, 2))
    )
    with serving(always(served.service), catalog) as elsewhere:
        access = ask(elsewhere, {"passwordCredentials": PASSWORD}).json()["access"]
        version = httpx.get(f"{elsewhere.url}/v1.1/").json()["version"]
    volume, compute = access["serviceCatalog"][:2]
    assert volume == {
        "name": "Block Storage",
        "type": "volume",
        "endpoints": [
            {
                "tenantId": DEMO.id,
                "publicURL": f"https://az-{n}.example.com/v1.1/{DEMO.id}",
                "region": f"az-{n}.region-a.geo-1",
                "versionId": "1.1",
                "versionInfo": f"https://az-{n}.example.com/v1.1/",
                "versionList": f"https://az-{n}.example.com",
            }
            for n in (1, 3, 2)
        ],
    }
    assert (compute["type"], compute["endpoints"]) == ("compute", volume["endpoints"])
    assert version["links"][0]["href"] == "https://az-1.example.com/v1.1/"


def test_what_is_open(served: Served) -> None:
    for path in ("/", "/v1.1/", "/v1.1", "/openapi.json", "/docs", "/image", "/image/versions"):
        assert httpx.get(f"{served.url}{path}").status_code == 200, path


PATHS = [
    "os-volumes",
    "os-volumes/1",
    "os-snapshots",
    "servers/1",
    "limits",
    "extensions",
    "nothing",
]


CLOSED_PATHS = ["/v2/images", "/image/v2/images", "/v2/schemas/image", "/v2.0/tenants"]


@pytest.mark.parametrize("token", [None, "", "x", "HPAuth_99", "é", "a" * 5000])
def test_without_a_valid_token(served: Served, token: str | None) -> None:
    headers = httpx.Headers()
    if token is not None:
        headers = httpx.Headers([(b"X-Auth-Token", token.encode("latin-1"))])
    for path in [*(f"/v1.1/{DEMO.id}/{path}" for path in PATHS), *CLOSED_PATHS]:
        for method in ("GET", "POST", "DELETE"):
            answer = httpx.request(method, f"{served.url}{path}", headers=headers)
            assert fault_of(answer)[:2] == (401, "unauthorized"), path


def test_expired_token(served: Served) -> None:
    identity = served.service.identity
    assert isinstance(identity, MemoryIdentity)
    with served.client() as client:
        assert client.get("/os-volumes").status_code == 200
        identity.expire_all()
        assert fault_of(client.get("/os-volumes"))[:2] == (401, "unauthorized")


def test_foreign_token(served: Served) -> None:
    service: Service = served.service
    with served.client() as mine, served.client(service.stranger) as theirs:
        volume = mine.post("/os-volumes", json={"volume": {"size": 1}}).json()["volume"]["id"]
        taken = mine.post("/os-snapshots", json={"snapshot": {"volume_id": volume}}).json()
        for path in PATHS:
            answer = theirs.get(f"{mine.base_url}{path}")
            assert fault_of(answer)[:2] == (403, "forbidden"), path
        for path in (f"/os-volumes/{volume}", f"/os-snapshots/{taken['snapshot']['id']}"):
            for method in ("GET", "DELETE"):
                assert fault_of(theirs.request(method, path))[:2] == (404, "itemNotFound")
        for path, body in [
            ("/os-snapshots", {"snapshot": {"volume_id": volume}}),
            ("/servers/1/os-volume_attachments", {"volumeAttachment": {"volumeId": volume}}),
            ("/os-volumes", {"volume": {"snapshot_id": taken["snapshot"]["id"]}}),
        ]:
            assert fault_of(theirs.post(path, json=body))[:2] == (404, "itemNotFound"), path
        assert theirs.get("/os-volumes").json() == {"volumes": []}
        assert mine.get(f"/os-volumes/{volume}").json()["volume"]["status"] == "available"
