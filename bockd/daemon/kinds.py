"""Which kind of pool the daemon serves: the only place that knows all kinds."""

from __future__ import annotations

from bockd.config import Settings
from bockd.daemon.backend import BackendKind
from bockd.model import PoolDriver


def backend_kind(settings: Settings) -> BackendKind:
    """Return the kind that the configuration names. No other one is imported. Raises
    NotSupportedError: this machine lacks what the kind needs, which the error says."""
    if settings.pool.driver is PoolDriver.RBD:
        from bockd.daemon.rbdbackend import RbdBackend

        return RbdBackend
    from bockd.daemon.localbackend import LocalBackend

    return LocalBackend
