"""Groups of commands: imported when they are asked for, and listed in whole sentences.

A command that shows one volume must not wait for what an import of an image needs.
"""

from __future__ import annotations

from importlib import import_module

import click

WHOLE = 1000
"""Characters: longer than any sentence."""


class LazyGroup(click.Group):
    """A group that knows some of its commands only by where they are."""

    def __init__(self, *args: object, **attributes: object) -> None:
        super().__init__(*args, **attributes)  # type: ignore[arg-type]
        self._places: dict[str, str] = {}

    def add_lazily(self, name: str, place: str) -> None:
        """Have the command `name` be the one that a module has, as "bockd.cli.stat:stat"."""
        self._places[name] = place

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the names of all commands, sorted."""
        return sorted({*self.commands, *self._places})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of a name, imported if need be; None when there is none."""
        place = self._places.get(cmd_name)
        if place is None:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = place.partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands, each with the first sentence of its help, however long."""
        found = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        rows = [
            (name, command.get_short_help_str(limit=WHOLE))
            for name, command in found
            if command is not None and not command.hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
