"""README.md's walk can be walked, as root and as a user.

`make test-walk` does the same on clean machines, from `apt-get install make` on.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.driver import configured, features
from tests.walk.steps import IN_DIRECTORY_ONLY, KERNEL_NBD, README, steps
from tests.walk.walker import Walker, give_images, machine

ROOT = Path(__file__).parents[2]
NOBODY = 65534

AS_NOBODY = (
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    # Who may look into the directories above this checkout, wherever it is.
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)


@pytest.fixture
def home() -> Iterator[Path]:
    """A home that another user can reach; pytest's directories are this user's alone."""
    made = Path(tempfile.mkdtemp(prefix="bockd-walk-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def checkout(home: Path) -> str:
    """A directory to walk in, with what is README's `$PWD` and the images that it names."""
    directory = home / "bockd"
    directory.mkdir()
    (directory / ".venv").symlink_to(ROOT / ".venv")
    give_images(directory)
    return str(directory)


@pytest.mark.parametrize("user", [0, NOBODY])
def test_the_walk(user: int, home: Path) -> None:
    in_directory = features().in_directory
    directory = checkout(home)
    if user:
        for path in (home, *home.rglob("*")):
            os.lchown(path, user, user)
    environment = {
        "HOME": str(home),
        "BOCKD_CONFIG": str(configured(home / "data", Path("/dev/null"))),
        "BOCKD_DATA": str(home / "data"),  # root's own pool is none of ours
        "BOCKD_NBD_LISTEN": "127.0.0.1:0",
        "BOCKD_API_LISTEN": "127.0.0.1:0",
    }
    own_mounts = ["unshare", "--mount", "--propagation", "private"]
    with machine(own_mounts, str(home / "fuse")) as enter:
        prefix = [*enter, *AS_NOBODY] if user else enter
        walker = Walker(
            directory,
            prefix,
            environment,
            root=user == 0,
            make=False,
            in_directory=in_directory,
        )
        walker.walk()
    every = [step.command for step in steps(README.read_text())]
    assert sorted([*walker.taken, *walker.left_out]) == sorted(every)
    assert len(walker.ready_seconds) == 2
    expected = (
        *("sudo apt-get install", *KERNEL_NBD),
        *(("LOOP=", "losetup ") if user else ()),
        *(() if in_directory else IN_DIRECTORY_ONLY),
    )
    assert all(one.startswith(expected) for one in walker.left_out), walker.left_out
