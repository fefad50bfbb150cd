"""Completion in the shells themselves, at a terminal, with names from a running daemon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bockd.cli.completion import is_plain

from .daemon import Daemon, Terminal

SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(bock completion bash)"'),
    "zsh": (
        ["zsh", "-f", "-i"],
        'autoload -U compinit; compinit -D -u; eval "$(bock completion zsh)"',
    ),
    "fish": (["fish", "--no-config", "-i"], "bock completion fish | source"),
}
"""How each is begun without the user's files, and what its user is told to have in them."""

TWO_WORDS = "quince two"
"""What a shell would take for two words, if it were offered as it is."""


@pytest.fixture
def shop(daemon: Daemon) -> Iterator[str]:
    """A volume, and another one with a name that needs quotes; its address is given."""
    made = daemon.bock_json("volume", "create", "quince-of-ann", "--size", "1M")
    daemon.bock("volume", "create", TWO_WORDS, "--size", "1M")
    yield made["uri"]
    daemon.bock("volume", "delete", "quince-of-ann")
    daemon.bock("volume", "delete", TWO_WORDS)


@pytest.mark.parametrize("shell", SHELLS)
def test_commands_options_and_names_are_completed(
    daemon: Daemon, shop: str, shell: str, tmp_path: Path
) -> None:
    """A line with a Tab in each word is what was meant, and runs when Enter is typed."""
    begin, setup = SHELLS[shell]
    terminal = Terminal(
        daemon,
        *("setsid", "--ctty", "--wait"),  # fish wants a terminal that controls it
        *begin,
        rows=50,
        HOME=str(tmp_path),
        BOCKD_COMPLETION_SECONDS="600",
    )
    terminal.type(setup + "\n")
    terminal.type("echo rea''dy\n")
    terminal.wait_for("ready")
    terminal.type("bock vol\tsh\tqui\t--js\t\n")
    terminal.wait_for(f'"uri": "{shop}"')
    terminal.type("exit\n")
    terminal.end()
    assert "quince two" not in terminal.seen


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        ("web-1.2_b@x+y%", True),
        ("gr\u00f6\u00dfe", True),
        ("a b", False),
        ("a'b", False),
        ("a&b", False),
        ("a:b", False),
        ("a,b", False),
        ("two\nlines", False),
        ("-rf", False),
    ],
)
def test_only_names_that_mean_themselves_are_offered(name: str, offered: bool) -> None:
    assert is_plain(name) is offered
