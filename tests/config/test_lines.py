"""Where keys stand: every path that `tomllib` finds is found, on the line where it was written."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bockd.config.lines import Path, key_lines, line_of

DOCUMENTS: dict[str, tuple[str, dict[Path, int]]] = {
    "empty": ("", {}),
    "a comment only": ("# a = 1", {}),
    "plain": ("a = 1\nb = 2\n", {("a",): 1, ("b",): 2}),
    "no newline at the end": ("\n\na=1", {("a",): 3}),
    "CRLF": ("a = 1\r\n\r\nb = 2\r\n", {("a",): 1, ("b",): 3}),
    "tables": (
        "[a]\nx = 1\n[a.b]\n  y = 2 # y\n[ c . d ]\n",
        {
            ("a",): 1,
            ("a", "x"): 2,
            ("a", "b"): 3,
            ("a", "b", "y"): 4,
            ("c",): 5,
            ("c", "d"): 5,
        },
    ),
    "dotted keys": (
        "a.b.c = 1\na . d = 2\n",
        {("a",): 1, ("a", "b"): 1, ("a", "b", "c"): 1, ("a", "d"): 2},
    ),
    "quoted keys": (
        '"a.b" = 1\n\'c"d\' = 2\n"\\u00e9\\"[]#=" = 3\n"" = 4\n',
        {("a.b",): 1, ('c"d',): 2, ('é"[]#=',): 3, ("",): 4},
    ),
    "quoted headers": (
        '[a."b]#".c]\nx=1',
        {("a",): 1, ("a", "b]#"): 1, ("a", "b]#", "c"): 1, ("a", "b]#", "c", "x"): 2},
    ),
    "strings that look like TOML": (
        'a = """\n[x]\nb = 1\n\\""""\nc = \'\'\'\n# = \'\nd = 2\'\'\'\ne = "\\"#"\n',
        {("a",): 1, ("c",): 5, ("e",): 8},
    ),
    "quotes before the closing quotes": (
        'a = """x"""""\nb = \'\'\'y\'\'\'\'\nc = """"""\nd = ""\ne = \'\'\n',
        {("a",): 1, ("b",): 2, ("c",): 3, ("d",): 4, ("e",): 5},
    ),
    "arrays": (
        'a = [\n  1, # ]\n  "]", [2, "x"],\n  {b = 3},\n]\nc = 1\n',
        {("a",): 1, ("c",): 6},
    ),
    "inline tables": (
        'a = {x = 1, "y.z" = {w = [ "}" ]}, v.u = 2}\nb = {}\n',
        {
            ("a",): 1,
            ("a", "x"): 1,
            ("a", "y.z"): 1,
            ("a", "y.z", "w"): 1,
            ("a", "v"): 1,
            ("a", "v", "u"): 1,
            ("b",): 2,
        },
    ),
    "arrays of tables": (
        "[[a]]\nx = 1\n[[a]]\nx = 2\n[a.b]\ny = 3\n[[a.c]]\n",
        {
            ("a",): 1,
            ("a", 0): 1,
            ("a", 0, "x"): 2,
            ("a", 1): 3,
            ("a", 1, "x"): 4,
            ("a", 1, "b"): 5,
            ("a", 1, "b", "y"): 6,
            ("a", 1, "c"): 7,
            ("a", 1, "c", 0): 7,
        },
    ),
    "other values": (
        "a = 1979-05-27 07:32:00 # x\nb = -inf\nc = 0x_f\n".replace("0x_f", "0xf"),
        {("a",): 1, ("b",): 2, ("c",): 3},
    ),
    "a table named late": (
        "[a.b]\n[a]\nx = 1\n",
        {("a",): 1, ("a", "b"): 1, ("a", "x"): 3},
    ),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_key_has_its_line(name: str) -> None:
    text, expected = DOCUMENTS[name]
    tomllib.loads(text)
    assert key_lines(text) == expected


def test_a_missing_key_has_the_line_of_its_table() -> None:
    lines = key_lines("\n[a]\nb = [{c = 1}]\n")
    assert line_of(lines, ("a", "b", 0, "c")) == 3
    assert line_of(lines, ("a", "missing")) == 2
    assert line_of(lines, ("missing",)) == 1


KEYS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=6)
SCALARS = (
    st.integers(-(1 << 60), 1 << 60)
    | st.booleans()
    | st.text(st.sampled_from("ab\n\"'\\#[]{}=,. \t"), max_size=12)
)
TABLES = st.recursive(
    st.dictionaries(KEYS, SCALARS, max_size=3),
    lambda inner: st.dictionaries(KEYS, SCALARS | inner | st.lists(inner, min_size=1, max_size=2)),
    max_leaves=8,
)


def quoted(text: str, style: int) -> str:
    """A string in one of TOML's ways to write it."""
    if style % 4 == 1 and "'" not in text and "\n" not in text and "\\" not in text:
        return f"'{text}'"
    if style % 4 == 2 and "'" not in text:
        return f"'''\n{text}'''"
    if style % 4 == 3:
        escaped = text.replace("\\", "\\\\").replace('"', '\\"')
        return f'"""\n{escaped}"""'
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def written(table: dict[str, Any], style: int, path: tuple[str, ...] = ()) -> list[str]:
    """A table as lines of TOML: values first, then the tables within."""
    lines = []
    for key, value in table.items():
        if isinstance(value, str):
            lines += f"{quoted(key, 0)} = {quoted(value, style)} # {style}".split("\n")
        elif isinstance(value, int):
            lines.append(f"{quoted(key, 0)} = {str(value).lower()}")
    for key, value in table.items():
        here = (*path, key)
        header = ".".join(quoted(part, 0) for part in here)
        if isinstance(value, dict):
            lines += [f"[{header}]", *written(value, style, here)]
        elif isinstance(value, list):
            for one in value:
                lines += ["", f"[[ {header} ]]", *written(one, style, here)]
    return lines


def paths(value: object, path: Path = ()) -> set[Path]:
    """All that is in a document."""
    found = {path} if path else set()
    if isinstance(value, dict):
        for key, inner in value.items():
            found |= paths(inner, (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            found |= paths(inner, (*path, number))
    return found


@given(TABLES, st.integers(0, 3))
def test_the_paths_are_those_that_tomllib_finds(table: dict[str, Any], style: int) -> None:
    lines = written(table, style)
    text = "\n".join(lines)
    assert tomllib.loads(text) == table
    found = key_lines(text)
    assert found.keys() == paths(table)
    for path, line in found.items():
        if isinstance(path[-1], str):
            assert quoted(path[-1], 0) in lines[line - 1]
