"""The daemon that a command needs besides the one that the environment points to.

It is named by its data directory, if it is on this machine, or by a file with OpenStack's
variables, as `bock credentials --shell` prints them there. So no password is on a command line.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from bockd.cli.storage import StorageClient
from bockd.config import load_settings
from bockd.config.load import CONFIG_VARIABLE, DATA_VARIABLE, load
from bockd.errors import DeniedError, InvalidRequestError, NotFoundError
from bockd.tls.trust import Trust

MAX_FILE_BYTES = 64 << 10
"""More is no file of variables."""


class Elsewhere:
    """A tenant's storage at another daemon."""

    def __init__(self, place: str) -> None:
        """Raises NotFoundError, InvalidRequestError or DeniedError for a place that is none. No
        daemon is asked."""
        path = Path(place).absolute()
        if path.is_dir():
            environ = {DATA_VARIABLE: str(path), CONFIG_VARIABLE: os.devnull}
            self.client = StorageClient(load(None, environ).settings, {})
            self.address = str(path)
        else:
            environ = read_variables(path)
            if "OS_AUTH_URL" not in environ:
                raise InvalidRequestError(f"{path} sets no OS_AUTH_URL")
            self.client = StorageClient(load_settings(), environ)
            self.address = environ["OS_AUTH_URL"]
        self.trust = Trust.of_environment(environ)


def read_variables(path: Path) -> dict[str, str]:
    """Read a file of lines like `export OS_USERNAME=demo`, in the shell's quotes. Nothing is
    executed. Raises NotFoundError, DeniedError, InvalidRequestError."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise NotFoundError(
            f"there is no {path}: name the data directory of a daemon on this machine, or a file "
            "of what 'bock credentials --shell' prints on the other one"
        ) from error
    except OSError as error:
        raise DeniedError(f"{path} cannot be read: {error.strerror}") from error
    found: dict[str, str] = {}
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        wrong = InvalidRequestError(f"{path}, line {number}, is not like: export OS_USERNAME=demo")
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise wrong from error
        if words[:1] == ["export"]:
            del words[0]
        for word in words:
            name, equals, value = word.partition("=")
            if not (equals and name.startswith("OS_")):
                raise wrong
            found[name] = value
    if len(content) > MAX_FILE_BYTES:
        raise InvalidRequestError(f"{path} is no file of variables: it is too large")
    return found
