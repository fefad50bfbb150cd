"""Which kind of pool the daemon serves: the only place that knows all kinds."""

from __future__ import annotations

from importlib import import_module

from bockd.config import Settings
from bockd.daemon.backend import BackendKind
from bockd.model import PoolDriver

KINDS = {
    PoolDriver.LOCAL: ("bockd.daemon.localbackend", "LocalBackend"),
    PoolDriver.RBD: ("bockd.daemon.rbdbackend", "RbdBackend"),
}
"""The module and the name of each."""


def backend_kind(settings: Settings) -> BackendKind:
    """Return the kind that the configuration names, and import no other. Raises NotSupportedError:
    this machine lacks what the kind needs, which the error says."""
    module, name = KINDS[settings.pool.driver]
    kind: BackendKind = getattr(import_module(module), name)
    return kind
