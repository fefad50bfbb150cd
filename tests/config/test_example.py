"""The example and the code agree: the same keys, the same defaults, and a word about each."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from bockd.cli.bockd import main
from bockd.config.decode import decode
from bockd.config.lines import key_lines
from bockd.config.load import default_data_dir, walk
from bockd.config.schema import NAMED, SECTION, Section, section_fields
from bockd.config.sections import Settings

EXAMPLE = Path(__file__).parents[2] / "bockd.example.toml"
TEXT = EXAMPLE.read_text()

COMMENTED_OUT = re.compile(r'^#(?=["\w\[])', re.MULTILINE)
"""A key or a table, unlike a comment for people, follows its # at once."""

WITHOUT_DEFAULT = {"data_dir"}
"""Its default depends on who runs the daemon."""

CHOSEN_BY_THE_USER = {("quota", "tenants"), ("catalog", "zones"), ("servers", "web1")}
"""Tables with one comment for all that stands below."""


def keys_of(kind: type[Section], path: str = "") -> Iterator[tuple[str, bool]]:
    """Every key that the code knows, and whether the user chooses what stands below it."""
    for name, one in section_fields(kind).items():
        if SECTION in one.metadata:
            yield from keys_of(one.metadata[SECTION], f"{path}{name}.")
        else:
            yield path + name, NAMED in one.metadata


def keys_in(table: dict[str, Any], path: str = "") -> Iterator[str]:
    """Every key of a document that has a value, and every empty table."""
    for name, value in table.items():
        if isinstance(value, dict) and value:
            yield from keys_in(value, f"{path}{name}.")
        else:
            yield path + name


def test_what_is_not_commented_out_is_the_default() -> None:
    decoded = decode(TEXT.encode(), "example")
    assert decoded.settings == Settings()
    given = set(decoded.sources)
    for key, value in walk(Settings()):
        assert (key in given) == (value is not None and key not in WITHOUT_DEFAULT), key


def test_everything_is_there_and_nothing_else() -> None:
    whole = COMMENTED_OUT.sub("", TEXT)
    decode(whole.encode(), "example")  # the values of the commented-out lines are right too
    found = set(keys_in(tomllib.loads(whole)))
    for key, named in keys_of(Settings):
        below = {one for one in found if one == key or (named and one.startswith(f"{key}."))}
        assert below, f"{key} is not in the example"
        found -= below
    assert found == set()


def test_the_default_data_directory_is_the_one_that_is_shown() -> None:
    shown = tomllib.loads(COMMENTED_OUT.sub("", TEXT))["data_dir"]
    assert Path(shown) == default_data_dir({}, as_root=True) == Settings().data_dir


def test_every_key_and_table_has_a_comment() -> None:
    whole = COMMENTED_OUT.sub("", TEXT)
    lines = whole.splitlines()
    for path, line in key_lines(whole).items():
        before = lines[line - 2]
        if path[:2] in CHOSEN_BY_THE_USER and len(path) > 2:
            continue  # their table has the comment
        assert before.startswith("# "), f"{path} on line {line} has no comment"


def test_it_is_what_the_program_prints() -> None:
    result = CliRunner().invoke(main, ["config", "example"])
    assert (result.exit_code, result.output) == (0, TEXT)


def test_no_line_is_longer_than_a_hundred_characters() -> None:
    assert [line for line in TEXT.splitlines() if len(line) > 100] == []


def test_a_default_that_changes_is_noticed() -> None:
    """The comparison above can fail."""
    other = TEXT.replace("token_seconds = 86400", "token_seconds = 86401")
    settings = decode(other.encode(), "example").settings
    assert settings != Settings()
    assert replace(settings, identity=Settings().identity) == Settings()
