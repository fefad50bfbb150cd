"""Shell completion: the script that `bock completion` prints, and the names it offers.

Names come from the daemon, quickly or not at all: a shell that waits for Tab must not hang,
and nothing may be printed into the line being typed. Only names are
offered that mean themselves in every shell, without quotes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem, get_completion_class

from bockd.cli.client import ControlClient
from bockd.cli.storage import StorageClient
from bockd.config import load_settings
from bockd.errors import BockdError

TIMEOUT_SECONDS = 0.5

TIMEOUT_VARIABLE = "BOCKD_COMPLETION_SECONDS"

PLAIN = frozenset("-_./+@%")
"""What a name may have beside letters and digits and be offered. Not ":" and "=", where bash begins
another word, and not ",", where click's script for fish ends one."""


def timeout_seconds() -> float:
    """Return how long the daemon may take."""
    try:
        return max(0.0, float(os.environ[TIMEOUT_VARIABLE]))
    except (KeyError, ValueError):
        return TIMEOUT_SECONDS


def is_plain(name: str) -> bool:
    """Return whether a name needs no quotes in any shell."""
    return all(letter.isalnum() or letter in PLAIN for letter in name) and name[:1] != "-"


def items(named: Iterable[tuple[str, str]], incomplete: str) -> list[CompletionItem]:
    """Return those of some names that can be offered, with what is said of each."""
    return [
        CompletionItem(name, help=text)
        for name, text in named
        if name.startswith(incomplete) and is_plain(name)
    ]


def offer(
    fetch: Callable[[StorageClient], Iterable[tuple[str, str]]], incomplete: str
) -> list[CompletionItem]:
    """Return the names that `fetch` finds and that begin with `incomplete`."""
    try:
        with StorageClient(load_settings(), os.environ, within_seconds=timeout_seconds()) as client:
            return items(fetch(client), incomplete)
    except BockdError:
        return []


def complete_volume(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the name of a volume."""
    return offer(
        lambda client: ((volume.name, f"volume {volume.id}") for volume in client.list_volumes()),
        incomplete,
    )


def complete_snapshot(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the name of a snapshot."""
    return offer(
        lambda client: ((found.name, f"snapshot {found.id}") for found in client.list_snapshots()),
        incomplete,
    )


def complete_image(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the name of an image."""
    try:
        socket = load_settings().api_socket
        with ControlClient(socket, within_seconds=timeout_seconds()) as client:
            images = client.list_images()
    except BockdError:
        return []
    return items(((found.name, f"image {found.id}") for found in images), incomplete)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes bock's commands, options and names in SHELL.

    \b
    bash   bock completion bash >> ~/.bashrc
    zsh    bock completion zsh >> ~/.zshrc
    fish   bock completion fish > ~/.config/fish/completions/bock.fish
    """
    chosen = get_completion_class(shell)
    assert chosen is not None
    click.echo(chosen(ctx.find_root().command, {}, "bock", "_BOCK_COMPLETE").source())
