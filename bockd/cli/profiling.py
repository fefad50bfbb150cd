"""`bock volume profile`, `bock profile` and `bock trace profile`: volumes that are like other
devices.

Giving a profile to a volume is the operator's, over the control API.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import click

from bockd.cli.arguments import reference
from bockd.cli.client import connect
from bockd.cli.completion import complete_volume
from bockd.cli.lazy import LazyGroup
from bockd.cli.output import json_option, print_json, print_record, print_table, report
from bockd.cli.profiles import complete_profile, read_argument
from bockd.cli.stat import format_latency
from bockd.errors import InvalidRequestError
from bockd.model import DeviceLatency, DeviceProfile
from bockd.profiles.builtin import BUILT_IN, built_in
from bockd.profiles.distribution import Distribution
from bockd.profiles.document import MAX_SEED, MIN_LATENCY_US, profile_document, read_profile
from bockd.profiles.recorded import latency_of
from bockd.trace.reading import open_trace
from bockd.trace.records import Kind

_FIELD_OF_KIND: Final = {
    Kind.READ: "read_us",
    Kind.WRITE: "write_us",
    Kind.TRIM: "trim_us",
    Kind.ZERO: "trim_us",
    Kind.FLUSH: "flush_us",
}


@click.command("profile")
@click.argument("volume", type=reference, shell_complete=complete_volume)
@click.argument(
    "profile",
    required=False,
    callback=read_argument,
    shell_complete=complete_profile,
    metavar="[NAME|@FILE]",
)
@click.option("--off", is_flag=True, help="Take the profile away: the volume is itself again.")
@click.option(
    "--seed",
    type=click.IntRange(0, MAX_SEED),
    help="Of all that is random in it; the profile's own (0) if absent.",
)
@json_option
def profile_volume(
    volume: str, profile: DeviceProfile | None, off: bool, seed: int | None, as_json: bool
) -> None:
    """Make a volume as slow as another device, and fail like one.

    At once, for clients that are connected, too, and until it is said otherwise. Without NAME, show
    the profile that it has. `bock profile list` shows the NAMEs; @FILE is a profile in JSON. Data
    is never touched: a request that fails was not carried out. The VOLUME goes by its id or its
    name in the pool, whichever tenant's it is. This needs the daemon's own user.

    \b
    bock volume profile web hdd-7200
    bock volume profile web dying --seed 7
    bock volume profile web @mine.json
    bock volume profile web --off
    """
    if off and (profile is not None or seed is not None):
        raise click.UsageError("say a profile, or --off, not both")
    if seed is not None and profile is None:
        raise click.UsageError("--seed is of a profile: say which")
    client = connect()
    if profile is None and not off:
        found = client.show_volume(volume)
    else:
        if profile is not None and seed is not None:
            profile = replace(profile, seed=seed)
        found = client.profile_volume(volume, profile)
    what = f"volume {found.id} ({found.name})"
    if found.profile is None:
        report(found, f"{what} has no device profile", as_json=as_json)
    else:
        report(found, f"{what} is like this device:", as_json=as_json)
        if not as_json:
            print_record(profile_fields(found.profile))


@click.group("profile", cls=LazyGroup)
def profile() -> None:
    """List and show device profiles. See also `bock volume profile`."""


@profile.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the device profiles that bockd brings."""
    if as_json:
        print_json([profile_document(one) for one in BUILT_IN.values()])
        return
    print_table(
        ("NAME=", "READ=", "WRITE=", "FLUSH=", "MORE="),
        [
            (
                one.name,
                *(shown_latency(latency) for latency in (one.read_us, one.write_us, one.flush_us)),
                ", ".join(shown_rest(one)),
            )
            for one in BUILT_IN.values()
        ],
    )


@profile.command()
@click.argument("name", shell_complete=complete_profile)
def show(name: str) -> None:
    """Print a device profile as JSON, to be changed and given back as @FILE.

    \b
    bock profile show hdd-7200 > mine.json
    bock volume profile web @mine.json
    """
    print_json(profile_document(built_in(name)))


@click.command("profile")
@click.argument("file")
@click.option("--name", default="recorded", show_default=True, help="Of the profile.")
def profile_of_trace(file: str, name: str) -> None:
    """Print a device profile with the latencies of a trace, as JSON.

    Each kind of request has the percentiles that it had when it was recorded; FILE is as in bock
    trace report. Record on the device that the volume shall be like, and not on a faster one.

    \b
    bock trace profile web.trace > web.json
    bock volume profile test @web.json
    """
    latencies: dict[str, list[int]] = {}
    with open_trace(file) as found:
        for record in found.records:
            field = _FIELD_OF_KIND.get(record.kind)
            if field is not None and record.latency_ns:
                latencies.setdefault(field, []).append(record.latency_ns)
    if not latencies:
        raise InvalidRequestError(f"{found.name} has no latencies: there is nothing to be like")
    fields = {field: _kept(latency_of(values)) for field, values in latencies.items()}
    print_json(profile_document(read_profile({"name": name, **fields})))


def _kept(latency: DeviceLatency) -> DeviceLatency:
    """Return a latency in which what is too short to be kept is 0, and which rounding has not made
    fall."""
    assert not isinstance(latency, int)
    return {percent: us if us >= MIN_LATENCY_US else 0 for percent, us in latency.items()}


def profile_fields(profile: DeviceProfile) -> list[tuple[str, str]]:
    """Return the titles and values that are printed for a profile."""
    return [
        ("profile", profile.name),
        ("seed", str(profile.seed)),
        ("reads", shown_latency(profile.read_us)),
        ("writes", shown_latency(profile.write_us)),
        ("trims", shown_latency(profile.trim_us)),
        ("flushes", shown_latency(profile.flush_us)),
        *(("and", rest) for rest in shown_rest(profile)),
    ]


def shown_latency(latency: DeviceLatency) -> str:
    """Return a latency for people: the median, and the 99th percentile if that is another one."""
    found = Distribution(latency)
    if found.nothing:
        return "-"
    median, tail = (format_latency(found.at(fraction) / 1000) for fraction in (0.5, 0.99))
    return median if median == tail else f"{median} (p99 {tail})"


def shown_rest(profile: DeviceProfile) -> Iterable[str]:
    """Yield what else a profile has, for people."""
    if (disk := profile.disk) is not None:
        yield f"a disk of {disk.rpm} rpm that seeks in {format_latency(disk.average_seek_us)}"
    if profile.parallel is not None:
        yield f"{profile.parallel} at a time"
    for name, rate in ({} if profile.limits is None else profile.limits.rates()).items():
        burst = "" if rate.burst is None else f" (bursts of {rate.burst})"
        yield f"{name} {rate.per_second}{burst}"
    if profile.errors:
        yield f"{len(profile.errors)} rules for errors"
    if profile.stalls:
        yield f"stuck for {max(one.seconds for one in profile.stalls):g} s at times"
