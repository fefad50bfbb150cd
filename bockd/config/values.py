"""Reading single values of the file: each function takes what TOML had and returns what the code
wants, or raises TypeError or ValueError with a reason that fits behind "KEY: ".
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import date, datetime, time
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from bockd.config.address import Address, parse_address

Read = Callable[[object], object]
E = TypeVar("E", bound=StrEnum)

MAX_TEXT = 255
"""Characters of a name: what the index and OpenStack's own databases take."""

MAX_SHOWN = 60
"""Characters of a bad value that are repeated in a message."""

TOML_TYPES: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "a Boolean"),
    (int, "an integer"),
    (float, "a float"),
    (str, "a string"),
    (list, "an array"),
    (dict, "a table"),
    ((datetime, date, time), "a date or time"),
)
"""In this order: True is an int too, in Python."""


def type_of(value: object) -> str:
    """Return what TOML calls the type of a value."""
    return next(name for kinds, name in TOML_TYPES if isinstance(value, kinds))


def wrong_type(expected: str, value: object) -> TypeError:
    """Return the error for a value of another type."""
    return TypeError(f"expected {expected}, found {type_of(value)}")


def shown(value: object) -> str:
    """Format a value for a message, cut to `MAX_SHOWN` characters."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def read_text(value: object) -> str:
    """Read a string that is a name: not empty, at most `MAX_TEXT` characters, all printable."""
    if not isinstance(value, str):
        raise wrong_type("a string", value)
    if not value or len(value) > MAX_TEXT or not value.isprintable():
        raise ValueError(f"{shown(value)} is not 1 to {MAX_TEXT} printable characters")
    return value


def read_flag(value: object) -> bool:
    """Read a Boolean."""
    if not isinstance(value, bool):
        raise wrong_type("true or false", value)
    return value


def read_path(value: object) -> Path:
    """Read an absolute path. A relative path would mean another file in each working directory."""
    if not isinstance(value, str):
        raise wrong_type("a string", value)
    if "\0" in value:
        raise ValueError(f"{shown(value)} holds a NUL character, which no path can")
    if not value.startswith("/"):
        raise ValueError(f"{shown(value)} is not an absolute path (~ and variables mean nothing)")
    return Path(value)


def read_listen(value: object) -> Address | None:
    """Read an address to listen on, or "none"."""
    if not isinstance(value, str):
        raise wrong_type("a string", value)
    return parse_address(value)


def read_url(value: object) -> str:
    """Read an http or https URL without a query. It is returned without a slash at its end."""
    text = read_text(value)
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 - raises for a port that is none
    except ValueError as error:
        raise ValueError(f"{shown(text)} is not a URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or " " in text:
        raise ValueError(f"{shown(text)} is not a URL like https://host:5000")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL here must not hold a user name or password")
    if parts.query or parts.fragment:
        raise ValueError(f"{shown(text)} must end before any ? or #")
    return text.rstrip("/")


def read_host_url(value: object) -> str:
    """Read an http or https URL of a host alone, without a path."""
    url = read_url(value)
    if urlsplit(url).path:
        raise ValueError(f"{shown(url)} must be scheme and host only, as http://host:8776")
    return url


def read_names(value: object) -> tuple[str, ...]:
    """Read an array of names, at least one."""
    if not isinstance(value, list):
        raise wrong_type("an array of strings", value)
    if not value:
        raise ValueError("the array is empty")
    return tuple(read_text(one) for one in value)


def read_some_names(value: object) -> tuple[str, ...]:
    """Read an array of names, which may be empty."""
    return () if value == [] else read_names(value)


def read_percents(value: object) -> tuple[int, ...]:
    """Read an array of whole percents, each larger than the one before; it may be empty."""
    if not isinstance(value, list):
        raise wrong_type("an array of integers", value)
    percents = tuple(read_percent(one) for one in value)
    if any(later <= earlier for earlier, later in pairwise(percents)):
        raise ValueError(f"{shown(value)} does not rise from each number to the next")
    return percents


def integer(minimum: int, maximum: int) -> Callable[[object], int]:
    """Return a function that reads an integer in these bounds, both included."""

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong_type("an integer", value)
        if not minimum <= value <= maximum:
            raise ValueError(f"{shown(value)} is not between {minimum} and {maximum}")
        return value

    return read


def choice(allowed: Collection[str]) -> Callable[[object], str]:
    """Return a function that reads one of these words."""

    def read(value: object) -> str:
        if not isinstance(value, str):
            raise wrong_type("a string", value)
        if value not in allowed:
            raise ValueError(f"{shown(value)} is none of {', '.join(allowed)}")
        return value

    return read


def word(kind: type[E], *allowed: E) -> Callable[[object], E]:
    """Return a function that reads one of an enumeration's words: all of them, or those that are
    `allowed`."""
    read_one = choice([one.value for one in allowed or kind])

    def read(value: object) -> E:
        return kind(read_one(value))

    return read


read_percent = integer(1, 99)
"""At 100 it is too late for a warning."""
