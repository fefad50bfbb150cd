"""Whatever a name holds and whatever the locale is, commands print something and do not fail."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import bockd.cli

from .daemon import Daemon

NAMES = ("日", "é", "a\x1b[31mb", "two\nlines", "\U0001f4be", "a\u202eb")
"""None in Latin-1; in Latin-1, not in ASCII; what a terminal obeys; what would break a table; one
more that none has; what turns the rest of a line round."""

DOCUMENTS = {
    "asking.py": 1,  # a question, which is printable
    "bockd.py": 1,  # a unit file
    "completion.py": 1,  # a shell's script
    "config.py": 1,  # the example
    "connect.py": 1,  # a unit file
    "failure.py": 2,  # JSON; a line that is printable
    "tenant.py": 1,  # what a shell evaluates
}
"""How often the modules of commands print by themselves, and what."""


@pytest.fixture
def named(daemon: Daemon) -> Iterator[Daemon]:
    """A volume and a snapshot of each name, as only the REST API makes them."""
    made = []
    with daemon.storage() as storage:
        for name in NAMES:
            body = {"size": 1, "display_name": name, "metadata": {name: name}}
            volume = storage.post("os-volumes", {"volume": body})["volume"]["id"]
            taken = {"volume_id": volume, "display_name": name}
            snapshot = storage.post("os-snapshots", {"snapshot": taken})["snapshot"]["id"]
            made.append((volume, snapshot))
        yield daemon
        for volume, snapshot in made:
            storage.delete_snapshot(snapshot)
            storage.delete_volume(volume)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_names_are_printed_in_every_character_set(named: Daemon, encoding: str) -> None:
    """`named` has names of which the character set does not know all."""
    environment = {**named.environment, "PYTHONIOENCODING": encoding, "COLUMNS": "80"}

    def bock(*arguments: str) -> bytes:
        done = subprocess.run(
            ["bock", *arguments], env=environment, capture_output=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, b""), done
        return done.stdout

    for kind in ("volume", "snapshot"):
        listed = bock(kind, "list").decode(encoding)
        found = json.loads(bock(kind, "list", "--json").decode("ascii"))
        assert set(NAMES) <= {one["name"] for one in found}
        lines = listed.splitlines()
        assert len(lines) == 1 + len(found)  # each in a line of its own
        expected = {"latin-1": ("?", "é"), "ascii": ("?", "?"), "utf-8": ("日", "é")}[encoding]
        shown = [line.split()[1] for line in lines[1:] if "lines" not in line]
        for name in (*expected, "a\\x1b[31mb", "a\\u202eb"):
            assert name in shown, shown
        assert "two\\nlines" in listed
        (chosen,) = (one["id"] for one in found if one["name"] == "日")
        assert expected[0] in bock(kind, "show", str(chosen)).decode(encoding)
        json.loads(bock(kind, "show", str(chosen), "--json").decode("ascii"))
    bock("stat", "--once")
    json.loads(bock("stat", "--once", "--json").decode("ascii"))
    refused = subprocess.run(
        ["bock", "volume", "show", "本"], env=environment, capture_output=True, check=False
    )
    assert refused.returncode == 1
    assert refused.stderr.startswith(b"bock: there is no volume")


def test_commands_print_through_one_module() -> None:
    """Which escapes what a terminal would obey, wherever a name stands in a line."""
    counted = Counter[str]()
    for module in Path(bockd.cli.__file__).parent.glob("*.py"):
        found = re.findall(r"\bclick\.s?echo\(|(?<![\w.])print\(", module.read_text())
        if found and module.name != "output.py":
            counted[module.name] = len(found)
    assert counted == DOCUMENTS
