"""From the text of a file to settings. Everything that is wrong is found in one pass."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, TypeVar

from bockd.config.lines import Path as KeyPath
from bockd.config.lines import key_lines, line_of
from bockd.config.problems import ConfigurationError, Problem
from bockd.config.schema import NAMED, READ, SECTION, Section, section_fields
from bockd.config.sections import Settings
from bockd.config.values import read_text, shown, wrong_type

S = TypeVar("S", bound=Section)

_POSITION = re.compile(r" \(at line (\d+), column (\d+)\)$")
_AT_END = " (at end of document)"
_TABLE_TWICE = "Cannot declare "
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a file says, and where: `sources` has "FILE:LINE" for each key that it gives."""

    settings: Settings
    sources: Mapping[str, str]


def decode(content: bytes, name: str) -> Decoded:
    """Decode the content of a configuration file; a key that it leaves out has its default. `name`
    is the file's name, for messages. Raises ConfigurationError."""
    text, document = _parse(content, name)
    decoder = _Decoder(name, key_lines(text))
    settings = decoder.section(Settings, document, ())
    if decoder.problems:
        raise ConfigurationError(tuple(problem for _, problem in sorted_by_line(decoder.problems)))
    return Decoded(settings, decoder.sources)


def sorted_by_line(problems: list[tuple[int, Problem]]) -> list[tuple[int, Problem]]:
    """Sort problems by line, in the order in which a reader of the file meets them."""
    return sorted(problems, key=lambda found: found[0])


def dotted(path: KeyPath) -> str:
    """Format a path as it would be written: `quota.tenants."my team".volumes`."""
    parts: list[str] = []
    for part in path:
        if isinstance(part, int):
            parts[-1] += f"[{part}]"
        else:
            parts.append(
                part if _BARE_KEY.fullmatch(part) else json.dumps(part, ensure_ascii=False)
            )
    return ".".join(parts)


def _parse(content: bytes, name: str) -> tuple[str, dict[str, Any]]:
    """The text, and what TOML makes of it."""

    def refuse(line: int, reason: str) -> ConfigurationError:
        return ConfigurationError((Problem(f"{name}:{line}", "", reason),))

    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise refuse(line, "this is not UTF-8 text, which TOML must be") from None
    if text.startswith("\ufeff"):
        raise refuse(1, "the file begins with a byte order mark: save it as UTF-8 without one")
    try:
        return text, tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reason = str(error)
        at = _POSITION.search(reason)
        line = int(at[1]) if at else text.count("\n") + 1
        reason = reason.removesuffix(at[0] if at else _AT_END)
        if reason.startswith(_TABLE_TWICE):
            reason += "; that table begins above already, so put its keys there"
        where = f" (column {at[2]})" if at else ""
        raise refuse(line, f"this is not TOML: {reason}{where}") from None
    except RecursionError:
        raise refuse(1, "brackets are nested too deeply") from None


@dataclass
class _Decoder:
    """One pass over a document. A value with a problem is left at its default, so that the pass
    goes on; the settings count only if there was none."""

    name: str
    lines: dict[KeyPath, int]
    problems: list[tuple[int, Problem]] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)

    def section(self, kind: type[S], table: Mapping[str, Any], path: KeyPath) -> S:
        """The record for a table."""
        known = section_fields(kind)
        before = len(self.problems)
        given: dict[str, Any] = {}
        for name, value in table.items():
            here = (*path, name)
            if name not in known:
                self._problem(here, f"unknown key{_suggestion(name, known)}")
                continue
            meta = known[name].metadata
            try:
                if SECTION in meta:
                    given[name] = self.section(meta[SECTION], _table(value), here)
                elif NAMED in meta:
                    given[name] = self._named(meta[NAMED], _table(value), here)
                else:
                    given[name] = meta[READ](value)
                    self._source(here)
            except (TypeError, ValueError) as error:
                self._problem(here, str(error))
        record = kind(**given)
        if len(self.problems) == before:
            for name, reason in record.problems():
                self._problem((*path, *name.split(".")), reason)
        return record

    def _named(self, value_kind: Any, table: Mapping[str, Any], path: KeyPath) -> dict[str, Any]:
        """The entries of a table whose keys the user chooses."""
        entries: dict[str, Any] = {}
        for name, value in table.items():
            here = (*path, name)
            try:
                read_text(name)
                if isinstance(value_kind, type):
                    entries[name] = self.section(value_kind, _table(value), here)
                else:
                    entries[name] = value_kind(value)
                    self._source(here)
            except (TypeError, ValueError) as error:
                self._problem(here, str(error))
        return entries

    def _source(self, path: KeyPath) -> None:
        self.sources[dotted(path)] = f"{self.name}:{line_of(self.lines, path)}"

    def _problem(self, path: KeyPath, reason: str) -> None:
        line = line_of(self.lines, path)
        self.problems.append((line, Problem(f"{self.name}:{line}", dotted(path), reason)))


def _table(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise wrong_type("a table", value)
    return value


def _suggestion(name: str, known: Mapping[str, object]) -> str:
    """What was meant, or what there is."""
    close = get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; here may stand: {', '.join(known)}" if len(name) < 100 else f" {shown(name)}"
