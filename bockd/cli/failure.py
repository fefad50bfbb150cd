"""How a command fails: one line on standard error that says what to do, exit status 1.

Usage errors are click's own: they show the usage and exit with 2.
"""

from __future__ import annotations

from typing import IO, Any

import click

from bockd.cli.lazy import LazyGroup
from bockd.cli.output import never_fail_to_print, printable
from bockd.errors import BockdError


class Failure(click.ClickException):
    """Ends the program with "PROGRAM: message" and exit status 1."""

    def __init__(self, program: str, message: str) -> None:
        super().__init__(" ".join(message.split("\n")))
        self.program = program

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the one line."""
        message = f"{self.program}: {printable(self.message)}"
        click.echo(message, file=file, err=file is None)


class Program(LazyGroup):
    """The outermost group: the one place that turns a BockdError into an exit status."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the program; completion in the shell is a part of it."""
        never_fail_to_print()
        return super().main(*args, **extra)

    def invoke(self, ctx: click.Context) -> object:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except BockdError as error:
            raise Failure(ctx.info_name or "bockd", str(error)) from error
