"""What a systemd unit says of a service, read as systemd reads it: a later assignment of a list
adds to it, an empty one clears it; of anything else the last one counts."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable

LISTS = frozenset(
    {
        "AmbientCapabilities",
        "CapabilityBoundingSet",
        "DeviceAllow",
        "Environment",
        "ExecStart",
        "ReadOnlyPaths",
        "RestrictAddressFamilies",
        "SystemCallFilter",
    }
)


def service_of(texts: Iterable[str]) -> dict[str, list[str]]:
    """The [Service] section of a unit and its drop-ins; for each directive its assignments."""
    service: dict[str, list[str]] = {}
    for text in texts:
        section = ""
        for line in text.splitlines():
            if line.startswith("["):
                section = line
            elif section == "[Service]" and line and not line.startswith("#"):
                name, value = line.split("=", 1)
                if name not in LISTS or not value:
                    service[name] = []
                service.setdefault(name, []).extend([value] if value else [])
    return service


def is_on(service: dict[str, list[str]], name: str) -> bool:
    """Whether a directive that is yes or no is yes."""
    return service.get(name) == ["yes"]


def words(service: dict[str, list[str]], name: str) -> list[str]:
    """All words of a list."""
    return " ".join(service.get(name, [])).split()


def allowed_calls(service: dict[str, list[str]]) -> set[str]:
    """The names of the system calls that SystemCallFilter= leaves; it must begin with a list of
    what is allowed. What systemd always allows is among them."""
    assignments = service["SystemCallFilter"]
    assert not assignments[0].startswith("~"), assignments
    sets = _sets()
    allowed = _expand("@default", sets)
    for assignment in assignments:
        named = {call for word in assignment.lstrip("~").split() for call in _expand(word, sets)}
        allowed = allowed - named if assignment.startswith("~") else allowed | named
    return allowed


def _expand(word: str, sets: dict[str, list[str]]) -> set[str]:
    if not word.startswith("@"):
        return {word}
    return {call for member in sets[word] for call in _expand(member, sets)}


def _sets() -> dict[str, list[str]]:
    """Systemd's named sets of system calls; what it knows to exist here besides has no name."""
    printed = subprocess.run(
        ["systemd-analyze", "--no-pager", "syscall-filter"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    sets: dict[str, list[str]] = {}
    name = ""
    for line in printed.splitlines():
        if not line.startswith(" "):
            name = line.strip()
        elif not line.lstrip().startswith("#"):
            sets.setdefault(name, []).append(line.strip())
    return sets
