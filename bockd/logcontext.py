"""What a line of the log is about, beside its text: fields that whoever knows them notes once, and
that are in all lines which the same task, or one that it starts, logs from then on.

Only the JSON log shows them (`bockd.daemon.logs`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar

VOLUME = "volume"
SNAPSHOT = "snapshot"
"""These two by their ids."""
TENANT = "tenant"
"""By its id."""
CONNECTION = "connection"
"""Of an NBD client: a number, from 1 on in each run of the daemon."""
REQUEST_ID = "request_id"
"""Of a request to an HTTP API, as its answer has it in x-openstack-request-id."""

SESSION = "session"
"""Of the dashboard: a name that tells sessions apart, and admits nobody."""

FIELDS = (VOLUME, SNAPSHOT, TENANT, CONNECTION, REQUEST_ID, SESSION)

_noted: ContextVar[Mapping[str, str]] = ContextVar("log_fields", default={})  # noqa: B039 - no change


def note(field: str, value: object) -> None:
    """Have a field in what this task logs from now on."""
    _noted.set({**_noted.get(), field: str(value)})


def clear() -> None:
    """Have no fields in what this task logs from now on. For a task that outlives who started it,
    or is about others, too."""
    _noted.set({})


def noted() -> Mapping[str, str]:
    """Return the fields of this task."""
    return _noted.get()
