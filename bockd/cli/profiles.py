"""Device profiles as arguments of commands, and as people read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from bockd.cli.output import printable
from bockd.errors import BockdError
from bockd.model import DeviceProfile

F = TypeVar("F", bound=Callable[..., Any])

FILE = "@"
"""In front of the name of a file."""

_MAX_FILE_BYTES = 1 << 20


def read_argument(
    _ctx: click.Context, _param: click.Parameter, value: str | None
) -> DeviceProfile | None:
    """Return the profile that an argument names. Raises click.BadParameter."""
    if value is None:
        return None
    from bockd.profiles.builtin import built_in
    from bockd.profiles.document import parse_profile

    try:
        if not value.startswith(FILE):
            return built_in(value)
        path = value.removeprefix(FILE)
        with open(path, "rb") as file:
            return parse_profile(file.read(_MAX_FILE_BYTES))
    except OSError as error:
        raise click.BadParameter(f"{printable(value)}: {error.strerror}") from error
    except BockdError as error:
        raise click.BadParameter(str(error)) from error


def complete_profile(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Complete the name of a profile that bockd brings."""
    from bockd.profiles.builtin import BUILT_IN

    return [name for name in BUILT_IN if name.startswith(incomplete)]


def profile_option(name: str) -> Callable[[F], F]:
    """Make the option for a profile."""
    return click.option(
        name,
        callback=read_argument,
        shell_complete=complete_profile,
        metavar="NAME|@FILE",
        help="Make it as slow as another device, and fail like one: `bock profile list` shows the "
        "NAMEs; @FILE is one of yours.",
    )
