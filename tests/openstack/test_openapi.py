"""schemathesis makes requests from the OpenAPI document, right ones and wrong ones.

None may be answered by a 5xx, by a status, a header or a body that the document does not know, or
without a token where one is needed. The seed is printed with what it finds.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ..amounts import amount
from ..api.public import Served

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
    "use_after_free",
    "ensure_resource_availability",
    "ignored_auth",
)

SETTINGS = """
[parameters]
"path.tenant" = "{tenant}"

[checks]
enabled = false
{checks}

# A volume that was just made is not found by a snapshot's id that was made up.
[[operations]]
include-path = "/v1.1/{{tenant}}/os-volumes/{{volume_id}}/action"
checks.ensure_resource_availability.enabled = false
"""

EXAMPLES = amount(5)
"""For each operation, besides those that cover each constraint of the document."""

RUN_SECONDS = 300
"""A bound for machines with other things to do; the number of examples ends it earlier."""


def test_every_answer_is_in_the_document(served: Served, tmp_path: Path) -> None:
    account = served.service.account
    settings = tmp_path / "schemathesis.toml"
    settings.write_text(
        SETTINGS.format(
            tenant=account.tenant_id, checks="\n".join(f"{c}.enabled = true" for c in CHECKS)
        )
    )
    with served.client() as client:
        token = client.headers["X-Auth-Token"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(settings)),
            *("run", f"{served.url}/openapi.json", "--header", f"X-Auth-Token:{token}"),
            *("--phases", "examples,coverage,fuzzing,stateful"),
            *("--max-examples", str(EXAMPLES), "--continue-on-failure", "--no-shrink"),
            *("--generation-database", "none", "--no-color", "--suppress-health-check", "all"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
