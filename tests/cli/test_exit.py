"""How commands end: 0 done, 1 refused or failed, 2 wrong usage, 130 interrupted; errors as JSON."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import click
import pytest

from bockd.cli.bock import main as bock
from bockd.cli.bockd import main as bockd

from .daemon import Daemon, Terminal

USAGE = [
    (["volume", "create", "x"], "--from-snapshot"),
    (["volume", "create", "x", "--size", "10GB"], "write 10GiB (binary)"),
    (["volume", "create", "x", "--size", "0"], "between 1 MiB and 16 TiB"),
    (["volume", "create", "x", "--size", "1k"], "a size of 1 KiB (1024 bytes) is out of range"),
    (
        ["volume", "create", "x", "--size", "17T"],
        "a size of 17 TiB (18691697672192 bytes) is out of range",
    ),
    (["volume", "create", "x", "--size", "1048577"], "1052672"),
    (["volume", "create", "x", "--size", "much"], "10GiB"),
    (["volume", "extend", "x", "--size", "0"], "between 1 MiB and 16 TiB"),
    (["volume", "extend", "x"], "--size"),
    (["volume", "create", "77", "--size", "1M"], "looks like an id"),
    (["volume", "create", "a\tb", "--size", "1M"], "control characters"),
    (["volume", "create", "", "--size", "1M"], "1 to 255 bytes"),
    (["volume", "create"], "Missing argument"),
    (["volume", "create", "x", "--snapshot", "s"], "--from-snapshot"),
    (["volume", "show", ""], "an empty name or id"),
    (["snapshot", "create", "x", "7"], "looks like an id"),
    (["snapshot", "list", "--volume", ""], "an empty name or id"),
    (["attachment", "create", "x", "a b"], "is no server"),
    (["server", "add", "x", "--kind", "vm"], "QMP socket"),
    (["connect", "x", "--loop", "--device", "/dev/nbd0"], "leave it out with --loop"),
    (["connect", "x", "--server", "a b"], "is no server"),
    (["image", "show", ""], "an empty name or id"),
    (["stat", "--interval", "0"], "0.1"),
    (["colour"], "No such command"),
]


@pytest.mark.parametrize(("command", "reason"), USAGE)
def test_what_the_line_itself_shows_to_be_wrong_is_wrong_usage(
    daemon: Daemon, tmp_path: Path, command: list[str], reason: str
) -> None:
    """Nobody is asked: it is the same without a daemon."""
    nowhere = Daemon(tmp_path / "none")
    assert reason in nowhere.misuse(*command)


@pytest.mark.parametrize(
    ("command", "status", "code", "reason"),
    [
        (["volume", "show", "none"], 1, "not-found", "no volume 'none'"),
        (["volume", "show", "12345"], 1, "not-found", "no volume '12345'"),
        (["stat", "none", "--once"], 1, "not-found", "no volume 'none'"),
        (["image", "show", "none"], 1, "not-found", "none"),
        (["volume", "create", "shaped", "--size", "1M"], 1, "conflict", "exists already"),
        (["volume", "create", "x", "--size", "0"], 2, "usage", "between 1 MiB"),
        (["volume", "create", "x", "--size"], 2, "usage", "'--json' is not a size"),
        (["colour"], 2, "usage", "No such command"),
    ],
)
def test_errors_are_json_with_json(
    daemon: Daemon, command: list[str], status: int, code: str, reason: str
) -> None:
    daemon.bock("volume", "create", "shaped", "--size", "1M")
    result = daemon.run("bock", *command, "--json")
    daemon.bock("volume", "delete", "shaped")
    assert (result.status, result.out) == (status, ""), result
    document = json.loads(result.err)
    assert document.keys() == {"error"}
    assert document["error"]["code"] == code
    assert reason in document["error"]["message"]


def test_without_a_daemon_the_error_is_json(daemon: Daemon, tmp_path: Path) -> None:
    for command in (["volume", "list"], ["pool", "show"], ["stat", "--once"], ["info"]):
        result = daemon.run("bock", *command, "--json", BOCKD_DATA=str(tmp_path))
        assert (result.status, result.out) == (1, "")
        assert json.loads(result.err)["error"]["code"] == "unavailable"


def test_interrupted_at_a_question(daemon: Daemon) -> None:
    daemon.bock("volume", "create", "asked-about", "--size", "1M")
    asked = Terminal(daemon, "bock", "volume", "delete", "asked-about")
    asked.wait_for("[y/N]: ")
    asked.signal(signal.SIGINT)
    assert asked.end() == 130
    declined = Terminal(daemon, "bock", "volume", "delete", "asked-about")
    declined.wait_for("[y/N]: ")
    declined.type("n\n")
    assert declined.end() == 1
    assert "nothing was done" in declined.seen
    assert "asked-about" in daemon.names()
    daemon.bock("volume", "delete", "asked-about")


def test_interrupted_while_it_waits(daemon: Daemon) -> None:
    """It has shown one interval and waits for the end of the next."""
    waiting = Terminal(daemon, "bock", "stat", "--interval", "0.1", "--json")
    waiting.wait_for('"volumes"')
    waiting.signal(signal.SIGINT)
    assert waiting.end() == 0  # which is the way to end it
    assert "Traceback" not in waiting.seen


def test_create_show_and_list_print_the_same_keys(daemon: Daemon) -> None:
    """What `create`, `show` and `list` print of a volume and of a snapshot has the same keys."""
    for kind, *arguments in (
        ("volume", "formed", "--size", "1M"),
        ("snapshot", "formed", "formed-then"),
    ):
        made = daemon.bock_json(kind, "create", *arguments)
        name = made["name"]
        shown = daemon.bock_json(kind, "show", name)
        (listed,) = [one for one in daemon.bock_json(kind, "list") if one["name"] == name]
        assert made == listed
        assert shown == {**made, "space": {"exclusive_bytes": 0, "shared_bytes": 0}}
        assert made["space"] is None
    for kind, name in (("snapshot", "formed-then"), ("volume", "formed")):
        assert daemon.bock_json(kind, "delete", name)["deleted"]["name"] == name


def leaves(group: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], click.Command]]:
    """All commands below a group."""
    context = click.Context(group)
    found: list[tuple[tuple[str, ...], click.Command]] = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        inner = (*path, name)
        found += leaves(command, inner) if isinstance(command, click.Group) else [(inner, command)]
    return found


@pytest.mark.parametrize(("program", "group"), [("bock", bock), ("bockd", bockd)])
def test_every_command_and_option_has_a_help(program: str, group: click.Group) -> None:
    for path, command in leaves(group, ()):
        assert command.help or command.short_help, path
        for option in command.params:
            assert not isinstance(option, click.Option) or option.help, (path, option.name)
    assert group.name == program


def lists_of(group: click.Group, context: click.Context) -> list[str]:
    """The help of a group and of the groups in it, 80 columns wide."""
    texts = [group.get_help(context)]
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            inner = click.Context(command, parent=context, info_name=name, terminal_width=80)
            texts += lists_of(command, inner)
    return texts


@pytest.mark.parametrize("group", [bock, bockd])
def test_no_sentence_of_a_help_is_cut(group: click.Group) -> None:
    context = click.Context(group, info_name=group.name, terminal_width=80)
    for text in lists_of(group, context):
        _, _, commands = text.partition("Commands:")
        assert "..." not in commands, text
