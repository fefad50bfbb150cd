"""Tables that rooms declare, in processes that know all of them or only some."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bockd.index.ballast import Ballast
from bockd.index.index import LmdbIndex
from bockd.index.tables import Table

NAMES = (
    *("access-keys", "api-snapshots", "api-volumes", "attached", "cells", "checksums", "children"),
    *("damaged", "exports", "homes", "images", "imports", "layers", "leaves", "maps", "meta"),
    *("names", "owned", "reclaim", "scrub", "servers", "snapshots", "tenants", "tokens", "trash"),
    *("users", "volumes"),
)
"""What an index of this format has."""

ALL = "import bockd.daemon.lifecycle, bockd.daemon.localbackend\n"
CHECK = "import bockd.cli.checking\n"
SOME = "import bockd.drivers.local.registry\n"

SHOW = """
from bockd.index.tables import declared_tables
print(*sorted(name.decode() for name in declared_tables()))
"""

OPEN = """
import sys
from pathlib import Path
from bockd.index.tables import declared_tables
from bockd.runtime.steps import Background
from bockd.drivers.local.registry import Registry
registry = Registry.open(Path(sys.argv[1]), Background().spawn)
index = registry.store.index
mine = declared_tables()[sys.argv[2].encode()]
index.update(lambda txn: txn.put(mine, sys.argv[3].encode(), b"kept"))
with index.reading() as txn:
    print(*sorted(f"{name.decode()}/{key.decode()}" for name, table in declared_tables().items()
                  for key, payload in txn.sound(table) if payload == b"kept"))
registry.release()
"""


def python(code: str, *arguments: str | Path) -> str:
    """Run a new process; what it prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("imported", [ALL, CHECK])
def test_who_serves_or_checks_a_pool_knows_every_table(imported: str) -> None:
    assert python(imported + SHOW).split() == sorted(NAMES)


def test_a_process_that_knows_fewer_tables_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    assert python(ALL + OPEN, pool, "tenants", "a") == "tenants/a"
    assert python(SOME + OPEN, pool, "homes", "b") == "homes/b"
    assert python(ALL + OPEN, pool, "images", "c") == "homes/b images/c tenants/a"


def test_a_pool_made_by_a_process_that_knows_fewer_gets_the_others_later(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    assert python(SOME + OPEN, pool, "homes", "b") == "homes/b"
    assert python(ALL + OPEN, pool, "images", "c") == "homes/b images/c"


def test_a_name_is_declared_once() -> None:
    Table(b"test-declared-once")
    with pytest.raises(ValueError, match="test-declared-once is declared twice"):
        Table(b"test-declared-once")


def test_a_table_declared_after_the_index_was_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    index = LmdbIndex.open(tmp_path / "index", Ballast(tmp_path / "ballast").release)
    late = Table(b"test-declared-late")
    try:
        with index.reading() as txn, pytest.raises(RuntimeError, match="test-declared-late"):
            txn.get(late, b"key")
    finally:
        index.close()
