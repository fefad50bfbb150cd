"""Types of arguments: what can be seen to be wrong on the command line is wrong usage, status 2."""

from __future__ import annotations

import click

from bockd.errors import InvalidRequestError
from bockd.model import check_image_name, check_name, check_volume_size, is_server_id


def reference(text: str) -> str:
    """A name or an id of something that is there."""
    if not text:
        raise click.BadParameter("an empty name or id refers to nothing")
    return text


def new_name(text: str) -> str:
    """A name for a volume or a snapshot."""
    try:
        return check_name(text)
    except InvalidRequestError as error:
        raise click.BadParameter(str(error)) from error


def new_image_name(text: str) -> str:
    """A name for an image."""
    try:
        return check_image_name(text)
    except InvalidRequestError as error:
        raise click.BadParameter(str(error)) from error


def server_name(text: str) -> str:
    """The id that a server has in the API."""
    if not is_server_id(text):
        raise click.BadParameter(
            f"{text[:40]!a} is no server: use 1 to 255 letters, digits, '.', '_' and '-'"
        )
    return text


def volume_size(size_bytes: int) -> int:
    """A size that a volume may have."""
    try:
        return check_volume_size(size_bytes)
    except InvalidRequestError as error:
        raise click.BadParameter(str(error)) from error
