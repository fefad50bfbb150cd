"""Profiles as JSON: read, checked, and written.

A document is an object with the fields of `bockd.model.DeviceProfile`. A field that there
is not is an error and not passed over: whoever misspells one must not believe that it holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, asdict, fields
from itertools import pairwise
from typing import Any, Final

import msgspec

from bockd.errors import InvalidRequestError
from bockd.model import (
    DeviceLatency,
    DeviceProfile,
    ErrorRule,
    IoLimits,
    IoRate,
    SpinningDisk,
    Stall,
)
from bockd.oneline import one_line
from bockd.profiles.arm import MAX_MEAN, MIN_MEAN, mean_distance
from bockd.validation import check_io_limits, shown_number

MIN_LATENCY_US: Final = 200
"""A shorter latency than this cannot be kept: the way through sockets and the daemon takes half as
long (docs/profiles.md has the measurements). 0 is none at all: as fast as the volume is."""

MAX_LATENCY_US: Final = 600_000_000
"""Ten minutes: beyond any client's patience."""

MAX_STALL_SECONDS: Final = 3600.0

MAX_POINTS: Final = 64
"""Percentiles of one latency: the profile stands in the record of its volume."""

MAX_RULES: Final = 64
"""Rules for errors, and stalls: each is looked at for each request."""

MAX_PARALLEL: Final = 1024
MAX_REQUESTS: Final = 10**12
MAX_SEED: Final = 2**53 - 1
"""Exact in JSON for everybody."""

MIN_RATE, MAX_RATE = 1_000_000, 10**11
"""Bytes per second that pass under a disk's head."""

MIN_BAD_PERCENT: Final = 0.0001
"""One block in four GiB."""

_MAX_SHOWN = 80
"""Characters of what was given, in a message."""

_PERCENTILE = re.compile(r"[0-9]{1,3}(\.[0-9]{1,9})?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_NESTED: Final[dict[type, dict[str, type]]] = {
    DeviceProfile: {"disk": SpinningDisk, "limits": IoLimits, "errors": ErrorRule, "stalls": Stall},
    IoLimits: {one.name: IoRate for one in fields(IoLimits) if one.name != "iops_size"},
}


def read_profile(document: object) -> DeviceProfile:
    """Return the profile that a JSON document is. Raises InvalidRequestError, which says what is
    wrong, and where."""
    if not isinstance(document, dict):
        raise _wrong("it is no JSON object")
    for where in _unknown(document, DeviceProfile, ""):
        raise _wrong(f"there is no field {_cut(where)}")
    try:
        profile = msgspec.convert(document, DeviceProfile)
    except msgspec.ValidationError as error:
        raise _wrong(_cut(str(error), 2 * _MAX_SHOWN)) from error
    return check_profile(profile)


def parse_profile(text: str | bytes) -> DeviceProfile:
    """Return the profile that a JSON text is. Raises InvalidRequestError."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise _wrong(f"it is no JSON ({error})") from error
    except RecursionError as error:
        raise _wrong("its JSON is nested too deeply") from error
    return read_profile(document)


def profile_document(profile: DeviceProfile) -> dict[str, Any]:
    """Return the document of a profile, without the fields that have their default."""
    found = _without_defaults(profile)
    found.update({name: [_without_defaults(one) for one in getattr(profile, name)]
                  for name in ("errors", "stalls") if getattr(profile, name)})  # fmt: skip
    if profile.disk is not None:
        found["disk"] = asdict(profile.disk)
    if profile.limits is not None:
        found["limits"] = {
            name: _without_defaults(value) if isinstance(value, IoRate) else value
            for name, value in _without_defaults(profile.limits).items()
        }
    plain: dict[str, Any] = msgspec.to_builtins(found)
    return plain


def _without_defaults(record: Any) -> dict[str, Any]:
    found = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if field.default is MISSING or value != field.default:
            found[field.name] = value
    return found


def _unknown(document: Mapping[str, Any], kind: type, prefix: str) -> Iterator[str]:
    """Yield what of a document is no field of its kind."""
    known = {field.name for field in fields(kind)}
    nested = _NESTED.get(kind, {})
    for name, value in document.items():
        if name not in known:
            yield f"{prefix}{name}"
        elif name in nested:
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, dict):
                    yield from _unknown(one, nested[name], f"{prefix}{name}.")


def _wrong(what: str) -> InvalidRequestError:
    return InvalidRequestError(f"the device profile cannot be used: {one_line(what)}")


def _cut(text: str, most: int = _MAX_SHOWN) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


# -- what makes sense ------------------------------------------------------------------------------


def check_profile(profile: DeviceProfile) -> DeviceProfile:
    """Return a profile that makes sense. Raises InvalidRequestError."""
    if not _NAME.fullmatch(profile.name):
        raise _wrong(
            f"its name {_cut(profile.name)!a} is not 1 to 64 letters, digits, '.', '_' and '-'"
        )
    _check_range("seed", profile.seed, 0, MAX_SEED)
    for name in ("read_us", "write_us", "trim_us", "flush_us"):
        _check_latency(name, getattr(profile, name))
    if profile.parallel is not None:
        _check_range("parallel", profile.parallel, 1, MAX_PARALLEL)
    _check_range("credits_percent", profile.credits_percent, 0, 100)
    if profile.limits is not None:
        check_io_limits(profile.limits)
    elif profile.credits_percent != 100:
        raise _wrong("credits_percent means nothing without limits")
    if profile.disk is not None:
        _check_disk(profile, profile.disk)
    _check_each("errors", profile.errors, _check_rule)
    _check_each("stalls", profile.stalls, _check_stall)
    return profile


def _check_range(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise _wrong(f"{name} is {shown_number(value)}; it may be {least:,} to {most:,}")


def _check_latency(name: str, latency: DeviceLatency) -> None:
    points = {"50": latency} if isinstance(latency, int) else latency
    if not 1 <= len(points) <= MAX_POINTS:
        raise _wrong(f"{name} has {len(points)} percentiles; it may have 1 to {MAX_POINTS}")
    found = []
    for percent, us in points.items():
        at = float(percent) if _PERCENTILE.fullmatch(percent) else -1.0
        if not 0 <= at <= 100:
            raise _wrong(
                f"{name} has {_cut(percent)!a}, which is no percentile from 0 to 100, in digits, "
                "with at most nine behind the point"
            )
        if us and not MIN_LATENCY_US <= us <= MAX_LATENCY_US:
            raise _wrong(
                f"{name} has {shown_number(us)} us; it may be {MIN_LATENCY_US} (a shorter time "
                f"cannot be kept) to {MAX_LATENCY_US:,} us, or 0 for no wait"
            )
        found.append((at, us))
    found.sort()
    for (low, less), (high, more) in pairwise(found):
        if low == high:
            raise _wrong(f"{name} has the percentile {low:g} twice")
        if less > more:
            raise _wrong(
                f"{name} has {less} us at {low:g} % and {more} us at {high:g} %, which is less"
            )


def _check_disk(profile: DeviceProfile, disk: SpinningDisk) -> None:
    if profile.parallel is not None:
        raise _wrong("a disk works on one request at a time: leave parallel out")
    _check_range("disk.rpm", disk.rpm, 1000, 60_000)
    _check_range("disk.full_seek_us", disk.full_seek_us, MIN_LATENCY_US, 1_000_000)
    _check_range("disk.track_seek_us", disk.track_seek_us, 0, disk.full_seek_us - 1)
    within = disk.track_seek_us <= disk.average_seek_us <= disk.full_seek_us
    if not (within and MIN_MEAN <= mean_distance(disk) <= MAX_MEAN):
        raise _wrong(
            f"disk.average_seek_us is {shown_number(disk.average_seek_us)}: an average over all "
            f"tracks lies between track_seek_us and full_seek_us, usually at half the way"
        )
    _check_range("disk.outer_bytes_per_second", disk.outer_bytes_per_second, MIN_RATE, MAX_RATE)
    _check_range(
        "disk.inner_bytes_per_second",
        disk.inner_bytes_per_second,
        MIN_RATE,
        disk.outer_bytes_per_second,
    )


def _check_each(name: str, rules: tuple[Any, ...], check: Callable[[str, Any], None]) -> None:
    if len(rules) > MAX_RULES:
        raise _wrong(f"it has {len(rules)} {name}; it may have {MAX_RULES}")
    for number, rule in enumerate(rules):
        check(f"{name}[{number}]", rule)


def _check_rule(name: str, rule: ErrorRule) -> None:
    if not rule.operations:
        raise _wrong(f"{name}.operations is empty: no request would fail")
    _check_range(f"{name}.offset_bytes", rule.offset_bytes, 0, MAX_REQUESTS * 4096)
    if rule.length_bytes is not None:
        _check_range(f"{name}.length_bytes", rule.length_bytes, 1, MAX_REQUESTS * 4096)
    _check_range(f"{name}.bad_blocks_percent", rule.bad_blocks_percent, MIN_BAD_PERCENT, 100)
    _check_range(f"{name}.percent", rule.percent, MIN_BAD_PERCENT, 100)
    _check_range(f"{name}.after_requests", rule.after_requests, 0, MAX_REQUESTS)
    if rule.latency_us is not None:
        _check_latency(f"{name}.latency_us", rule.latency_us)


def _check_stall(name: str, stall: Stall) -> None:
    _check_range(f"{name}.seconds", stall.seconds, 0.001, MAX_STALL_SECONDS)
    _check_range(f"{name}.after_requests", stall.after_requests, 0, MAX_REQUESTS)
    if stall.every_requests is not None:
        _check_range(f"{name}.every_requests", stall.every_requests, 1, MAX_REQUESTS)
