"""IoLimits of I/O as people read them."""

from __future__ import annotations

from bockd.cli.sizes import format_size
from bockd.model import IoLimits, IoRate

_TITLES = {
    "iops": "operations",
    "read_iops": "reads",
    "write_iops": "writes",
    "bps": "bytes",
    "read_bps": "bytes read",
    "write_bps": "bytes written",
}


def limit_fields(limits: IoLimits) -> list[tuple[str, str]]:
    """Return the titles and values that are printed for limits; none for no limits."""
    found = [
        (f"limit of {_TITLES[name]}", _shown(rate, in_bytes=name.endswith("bps")))
        for name, rate in limits.rates().items()
    ]
    if limits.iops_size is not None:
        found.append(("one operation", f"up to {format_size(limits.iops_size)}"))
    return found


def _shown(rate: IoRate, *, in_bytes: bool) -> str:
    def amount(number: int) -> str:
        return format_size(number) if in_bytes else str(number)

    shown = f"{amount(rate.per_second)}/s"
    if rate.burst is None:
        return shown
    if rate.burst_seconds == 1:
        return f"{shown}, bursts of {amount(rate.burst)}"
    return f"{shown}, bursts of {amount(rate.burst)}/s for {rate.burst_seconds} s"
