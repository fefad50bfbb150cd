"""The guest itself: it boots, runs commands, and says what went wrong."""

from __future__ import annotations

import pytest

from .vm import Guest, GuestError


def test_the_guest_runs_commands_and_says_what_went_wrong(guest: Guest) -> None:
    assert "Linux" in guest.run("uname -s")
    assert guest.attempt("echo out; echo err >&2; exit 3").status == 3
    assert guest.run("printf 'two\\nlines'") == "two\nlines"
    assert guest.run("head -c 100000 /dev/zero | tr '\\0' x") == "x" * 100_000
    assert guest.run(f"echo {'y' * 20_000}") == "y" * 20_000 + "\n"

    with pytest.raises(GuestError, match="status 2: ls /absent"):
        guest.run("ls /absent; exit 2")
    with pytest.raises(GuestError, match="timed out waiting for the guest to end: sleep 600"):
        guest.run("sleep 600", timeout_seconds=0.2)


def test_a_guest_that_dies_shows_its_console(guest: Guest) -> None:
    with pytest.raises(GuestError, match=r"(?s)the guest ended.*sysrq.*[Pp]anic"):
        guest.run("echo c >/proc/sysrq-trigger")
