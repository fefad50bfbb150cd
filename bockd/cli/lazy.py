"""Groups of commands: imported when they are asked for, and listed in whole sentences.

A command that shows one volume must not wait for what an import of an image needs.
"""

from __future__ import annotations

from importlib import import_module

import click

from bockd.cli.finding import did_you_mean

WHOLE = 1000
"""Characters: longer than any sentence."""

SYNONYMS = {
    "ls": "list",
    "rm": "delete",
    "remove": "delete",
    "destroy": "delete",
    "info": "show",
    "resize": "extend",
    "grow": "extend",
    "mv": "rename",
    "rollback": "revert",
    "top": "stat",
}
"""What other programs call it, of which no name is near."""


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

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the name of a command, the command, and what follows it. Raises click.UsageError,
        which names commands that are near: click itself knows only those that are imported."""
        name = args[0]
        if ctx.resilient_parsing or self.get_command(ctx, name) is not None:
            return super().resolve_command(ctx, args)
        there = self.list_commands(ctx)
        synonym = SYNONYMS.get(name)
        near = f"did you mean {synonym!r}?" if synonym in there else did_you_mean(name, there)
        raise click.UsageError(f"No such command {name!r}" + (near and f"; {near}"), ctx)

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
