"""Shell completion: the script that `bock completion` prints, and the names it offers.

Names come from the daemon, quickly or not at all: a shell that waits for Tab must not hang,
and nothing may be printed into the line being typed.
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


def offer(
    fetch: Callable[[StorageClient], Iterable[tuple[str, str]]], incomplete: str
) -> list[CompletionItem]:
    """Return the names that `fetch` finds and that begin with `incomplete`."""
    try:
        with StorageClient(load_settings(), os.environ, within_seconds=TIMEOUT_SECONDS) as client:
            named = list(fetch(client))
    except BockdError:
        return []
    return [CompletionItem(name, help=text) for name, text in named if name.startswith(incomplete)]


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
        with ControlClient(socket, within_seconds=TIMEOUT_SECONDS) as client:
            images = client.list_images()
    except BockdError:
        return []
    return [
        CompletionItem(found.name, help=f"image {found.id}")
        for found in images
        if found.name.startswith(incomplete)
    ]


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
