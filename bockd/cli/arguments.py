"""Types of arguments: what can be seen to be wrong on the command line is wrong usage, status 2."""

from __future__ import annotations

import click

from bockd.errors import InvalidRequestError
from bockd.model import is_server_id
from bockd.validation import check_image_name, check_name, check_volume_size


def reference(text: str) -> str:
    """Check a name or an id that refers to something, and return it. Raises click.BadParameter."""
    if not text:
        raise click.BadParameter("an empty name or id refers to nothing")
    return text


def new_name(text: str) -> str:
    """Check a name for a volume or a snapshot, and return it. Raises click.BadParameter."""
    try:
        return check_name(text)
    except InvalidRequestError as error:
        raise click.BadParameter(str(error)) from error


def new_image_name(text: str) -> str:
    """Check a name for an image, and return it. Raises click.BadParameter."""
    try:
        return check_image_name(text)
    except InvalidRequestError as error:
        raise click.BadParameter(str(error)) from error


def server_name(text: str) -> str:
    """Check the id that a server has in the API, and return it. Raises click.BadParameter."""
    if not is_server_id(text):
        raise click.BadParameter(
            f"{text[:40]!a} is no server: use 1 to 255 letters, digits, '.', '_' and '-'"
        )
    return text


def volume_size(size_bytes: int) -> int:
    """Check a volume's size in bytes, and return it. Raises click.BadParameter."""
    try:
        return check_volume_size(size_bytes)
    except InvalidRequestError as error:
        raise click.BadParameter(str(error)) from error
