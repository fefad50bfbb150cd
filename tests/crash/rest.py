"""The block storage API for a scenario: one keep-alive connection, JSON in and out."""

from __future__ import annotations

import http.client
import json
from typing import Any

ANSWER_SECONDS = 600.0
"""An answer takes milliseconds; the machine may be very busy with other tests."""


class Rest:
    """One tenant's client. Raises OSError or http.client.HTTPException when the daemon goes."""

    def __init__(self, port: int, token: str = "", tenant: str = "") -> None:
        self.port = port
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
        self.token = token
        self.tenant = tenant

    def close(self) -> None:
        self._connection.close()

    def authenticate(self, credentials: dict[str, str]) -> None:
        """A token by password; it is used from now on."""
        self.tenant = credentials["tenant_id"]
        document = {
            "auth": {
                "passwordCredentials": {
                    "username": credentials["username"],
                    "password": credentials["password"],
                },
                "tenantId": self.tenant,
            }
        }
        answer = self._send("POST", "/v2.0/tokens", document)
        self.token = answer["access"]["token"]["id"]

    def revoke(self) -> None:
        """End the token that is used."""
        self._send("DELETE", f"/v2.0/tokens/{self.token}")

    def get(self, path: str) -> Any:
        return self._send("GET", f"/v1.1/{self.tenant}{path}")

    def post(self, path: str, document: object) -> Any:
        return self._send("POST", f"/v1.1/{self.tenant}{path}", document)

    def act(self, volume: int, action: str, wanted: object = None) -> None:
        """One of the actions on a volume."""
        self.post(f"/volumes/{volume}/action", {action: wanted})

    def delete(self, path: str) -> None:
        self._send("DELETE", f"/v1.1/{self.tenant}{path}")

    def _send(self, method: str, path: str, document: object = None) -> Any:
        body = None if document is None else json.dumps(document)
        headers = {"X-Auth-Token": self.token, "Content-Type": "application/json"}
        self._connection.request(method, path, body, headers)
        response = self._connection.getresponse()
        content = response.read()
        # The daemon closes one that is idle for some seconds, which is not to be taken for its
        # death; the next request opens another one.
        self._connection.close()
        assert response.status < 300, f"{method} {path}: {response.status} {content!r}"
        return json.loads(content) if content else None
