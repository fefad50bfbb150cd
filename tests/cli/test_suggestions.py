"""What is mistyped is answered with what is near, and with nothing that the caller may not see."""

from __future__ import annotations

import re

import pytest

from bockd.cli.finding import did_you_mean

from .daemon import Daemon, acting

NAMES = ["web", "web-test", "database", "1"]


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("wbe", "did you mean 'web'?"),
        ("DATABASE", "did you mean 'database'?"),
        ("web-tst", "did you mean 'web-test' or 'web'?"),
        ("mail", ""),
        ("11", ""),
        ("w" * 65, ""),
    ],
)
def test_near_names_are_asked_about(text: str, asked: str) -> None:
    assert did_you_mean(text, NAMES) == asked


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["volum", "list"], "No such command 'volum'; did you mean 'volume'?"),
        (["volume", "exprot"], "No such command 'exprot'; did you mean 'export'?"),
        (["snapshot", "rollback"], "No such command 'rollback'; did you mean 'revert'?"),
        (["volume", "ls"], "No such command 'ls'; did you mean 'list'?"),
        (["ls"], "No such command 'ls'"),
    ],
)
def test_a_mistyped_command_is_answered_with_those_near(
    daemon: Daemon, words: list[str], told: str
) -> None:
    assert daemon.misuse(*words).endswith(told)


def test_a_mistyped_option_is_answered_with_those_near(daemon: Daemon) -> None:
    """By click, whose releases have different words for it."""
    told = daemon.misuse("volume", "list", "--jsn")
    assert re.search(r"Did you mean '?--json'?\?$", told)


def test_a_mistyped_name_is_answered_with_those_near(daemon: Daemon) -> None:
    daemon.bock("volume", "create", "ledger", "--size", "1M")
    daemon.bock("snapshot", "create", "ledger", "ledger-then")
    daemon.bock("server", "add", "rack-seven", "--kind", "plain")
    for words, told in (
        (("volume", "show", "legder"), "there is no volume 'legder'; did you mean 'ledger'"),
        (("stat", "legder", "--once"), "there is no volume 'legder'; did you mean 'ledger'"),
        (("volume", "create", "x", "--from-snapshot", "ledgerthen"), "did you mean 'ledger-then'"),
        (("server", "show", "rack-svn"), "did you mean 'rack-seven'"),
        (("tenant", "show", "dmeo"), "there is no tenant 'dmeo'; did you mean 'demo'"),
    ):
        # The nearest first; other tests' names may be near, too.
        assert told in daemon.refusal(*words)
    daemon.bock("server", "remove", "rack-seven")
    daemon.bock("snapshot", "delete", "ledger-then")
    daemon.bock("volume", "delete", "ledger")


def test_names_of_another_tenant_are_not_suggested(daemon: Daemon) -> None:
    daemon.bock("volume", "create", "secret-plan", "--size", "1M")
    daemon.bock("tenant", "create", "strangers")
    password = daemon.bock_json("user", "create", "eve", "--tenant", "strangers")["password"]
    there = acting(daemon, "eve", password, "strangers")
    told = daemon.refusal("volume", "show", "secret-pln", **there)
    assert told == ("bock: there is no volume 'secret-pln'; 'bock volume list' shows what there is")
    assert daemon.refusal("volume", "show", "secret-pln").endswith("did you mean 'secret-plan'?")
    daemon.bock("user", "delete", "eve")
    daemon.bock("tenant", "delete", "strangers")
    daemon.bock("volume", "delete", "secret-plan")
