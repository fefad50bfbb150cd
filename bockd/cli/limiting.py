"""`bock volume limit` and `bock tenant limit`: how much I/O may be done in a second.

These are the operator's, over the control API.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import click

from bockd.cli.accountclient import connect as connect_accounts
from bockd.cli.arguments import reference
from bockd.cli.client import connect
from bockd.cli.completion import complete_volume
from bockd.cli.iolimits import limit_fields
from bockd.cli.output import json_option, report
from bockd.cli.sizes import parse_size
from bockd.model import IoLimits, IoRate
from bockd.validation import MAX_IO_RATE

F = TypeVar("F", bound=Callable[..., Any])

_NAMES = ("iops", "read_iops", "write_iops", "bps", "read_bps", "write_bps")

_BURST = re.compile(r"([a-z-]+)=([^:]+)(?::([0-9]{1,5})s?)?")


def _operations(text: str) -> int:
    if text.isascii() and text.isdigit() and 0 < int(text[:16]) <= MAX_IO_RATE:
        return int(text[:16])
    raise ValueError(f"{text!r} is not a number of operations in a second")


def _bytes(text: str) -> int:
    size = parse_size(text.removesuffix("/s"))
    if 0 < size <= MAX_IO_RATE:
        return size
    raise ValueError(f"{text!r} is not a number of bytes in a second")


def _amount(name: str, text: str) -> int:
    return _bytes(text) if name.endswith("bps") else _operations(text)


def _read_rate(_ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    assert param.name is not None
    try:
        return _amount(param.name, value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _read_bursts(
    _ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]
) -> dict[str, tuple[int, int]]:
    bursts = {}
    for value in values:
        match = _BURST.fullmatch(value)
        name = "" if match is None else match[1].replace("-", "_")
        if match is None or name not in _NAMES:
            raise click.BadParameter(
                f"{value!r} is not like iops=2000 or write-bps=200MiB:30, which lasts 30 seconds"
            )
        try:
            bursts[name] = _amount(name, match[2]), int(match[3] or "1")
        except ValueError as error:
            raise click.BadParameter(str(error)) from error
    return bursts


def _read_size(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    try:
        return None if value is None else parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def limit_options(command: F) -> F:
    """Give a command the options from which `wanted` makes limits."""
    texts = {
        "iops": ("NUMBER", "Reads and writes together, in a second."),
        "read_iops": ("NUMBER", "Reads in a second."),
        "write_iops": ("NUMBER", "Writes in a second; a trim is one."),
        "bps": ("SIZE", "Bytes read and written together, in a second, like 50MiB."),
        "read_bps": ("SIZE", "Bytes read in a second."),
        "write_bps": ("SIZE", "Bytes written in a second."),
    }
    options = [
        *(
            click.option(
                f"--{name.replace('_', '-')}", name, callback=_read_rate, metavar=metavar, help=text
            )
            for name, (metavar, text) in texts.items()
        ),
        click.option(
            "--burst",
            "bursts",
            callback=_read_bursts,
            multiple=True,
            metavar="LIMIT=RATE[:SECONDS]",
            help="The rate of a burst of one of these limits, and how long it may last after a "
            "pause: iops=2000:30. Without the seconds that much may come at once. Can be repeated.",
        ),
        click.option(
            "--iops-size",
            callback=_read_size,
            metavar="SIZE",
            help="Count a request as one operation for each SIZE that it begins, not as one.",
        ),
        click.option("--none", "to_none", is_flag=True, help="No limits, not the default ones."),
        click.option("--default", "to_default", is_flag=True, help="The configuration's limits."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def wanted(
    bursts: dict[str, tuple[int, int]],
    iops_size: int | None,
    to_none: bool,
    to_default: bool,
    **rates: int | None,
) -> IoLimits | None:
    """Return the limits that the options ask for. None: the default. Raises click.UsageError."""
    given = {name: IoRate(rate) for name, rate in rates.items() if rate is not None}
    said = bool(given or bursts or iops_size)
    if said + to_none + to_default != 1:
        raise click.UsageError("give limits, like --iops 500, or else --none, or --default")
    if to_default:
        return None
    for name, (rate, seconds) in bursts.items():
        if name not in given:
            option = name.replace("_", "-")
            raise click.UsageError(f"a burst of {option} needs the limit, too: --{option}")
        given[name] = replace(given[name], burst=rate, burst_seconds=seconds)
    return IoLimits(iops_size=iops_size, **given)


def _lines(what: str, limits: IoLimits, *, own: bool) -> list[str]:
    whose = "" if own else " (the default)"
    shown = [f"  {title}: {value}" for title, value in limit_fields(limits)]
    return [f"{what} has limits{whose}:", *shown] if shown else [f"{what} has no limits{whose}"]


@click.command("limit")
@click.argument("volume", type=reference, shell_complete=complete_volume)
@limit_options
@json_option
def limit_volume(volume: str, as_json: bool, **options: Any) -> None:
    """Limit the I/O of a volume.

    At once, for all its connections together, and until it is said otherwise. What is not named
    here has no limit any more. The VOLUME goes by its id or its name in the pool, whichever
    tenant's it is. This needs the daemon's own user.

    \b
    bock volume limit db --iops 500 --bps 50MiB
    bock volume limit db --iops 500 --burst iops=2000:30
    bock volume limit db --none
    """
    found = connect().limit_volume(volume, wanted(**options))
    what = f"volume {found.id} ({found.name})"
    report(found, *_lines(what, found.limits, own=found.own_limits), as_json=as_json)


@click.command("limit")
@click.argument("tenant")
@limit_options
@json_option
def limit_tenant(tenant: str, as_json: bool, **options: Any) -> None:
    """Limit the I/O of all volumes of a tenant together.

    They share it in turn, each within its own limits. What is not named here has no limit any more.

    \b
    bock tenant limit acme --iops 10000 --bps 500MiB
    bock tenant limit acme --none
    """
    found = connect_accounts().limit_tenant(tenant, wanted(**options))
    what = f"tenant {found.name} ({found.id})"
    report(found, *_lines(what, found.limits, own=found.own_limits), as_json=as_json)
