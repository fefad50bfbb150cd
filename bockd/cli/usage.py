"""`bock du`: what each volume and snapshot takes, and what returns when it is deleted."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence

import click

from bockd.cli.arguments import reference
from bockd.cli.client import connect
from bockd.cli.completion import complete_volume
from bockd.cli.output import json_option, print_json, print_table, say
from bockd.cli.sizes import format_size
from bockd.model import NodeKind
from bockd.pool.reports import FamilyUsage, NodeUsage

Row = tuple[str, ...]

BRANCHES = ("\u251c\u2500 ", "\u2514\u2500 ", "\u2502  ", "   ")
"""Before the name of one of several, of the last one, and before what is below either."""

ASCII_BRANCHES = ("|- ", "`- ", "|  ", "   ")

TITLES = ("NAME", "SIZE>", "EXCLUSIVE>", "SHARED>", "WITH ALL BELOW>")
TITLES_WITH_FREED = (*TITLES[:-1], "FREED>", TITLES[-1])
"""Where not all that is exclusive returns."""


@click.command()
@click.argument("volume", type=reference, required=False, shell_complete=complete_volume)
@json_option
def du(volume: str | None, as_json: bool) -> None:
    """Show what each volume and snapshot takes of the pool, as a tree.

    Below a volume are its snapshots, and below a snapshot or a volume what was made of it.
    EXCLUSIVE returns when this one is deleted, SHARED is also used by others, and WITH ALL BELOW
    returns when this one is deleted and all that is below it. In a pool in Ceph FREED says what
    returns when this one is deleted, at least: an image of a volume with snapshots stays until
    these are gone. Deleting gives space back in the background; what is in the trash is shown as
    trash/NAME, and takes its space there. With VOLUME, only those that may share data with it. It
    is a walk over all maps.

    \b
    bock du
    bock du web
    """
    client = connect()
    wanted = None if volume is None else int(client.show_volume(volume).id)
    families = [one for one in client.usage() if wanted is None or holds(one, wanted)]
    if as_json:
        print_json(families)
        return
    images = {int(one.snapshot): one.name for one in client.list_images()}
    rows = [row for family in families for row in family_rows(family, images, branches())]
    total = sum(family.total_bytes for family in families)
    rows.append(sum_row("total", total))
    if any(node.freed_bytes is not None for family in families for node in family.nodes):
        print_table(TITLES_WITH_FREED, rows)
    else:
        print_table(TITLES, [(*row[:-2], row[-1]) for row in rows])
    if hidden := sum(family.hidden_snaps for family in families):
        say(
            f"{hidden} deleted snapshot(s) stay in Ceph for the volumes made of them; what only "
            "they hold is not known, and not in these figures"
        )


def holds(family: FamilyUsage, volume: int) -> bool:
    """Return whether a volume is one of a family."""
    return any((one.kind, one.id) == (NodeKind.VOLUME, volume) for one in family.nodes)


def branches() -> Sequence[str]:
    """Return what a tree is drawn with, as far as the terminal's character set has it."""
    try:
        "".join(BRANCHES).encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return ASCII_BRANCHES
    return BRANCHES


def family_rows(
    family: FamilyUsage, images: Mapping[int, str], drawn: Sequence[str]
) -> Iterator[Row]:
    """Yield the rows of a family. Where what all were made of is deleted, the first row stands for
    that."""
    below: dict[object, list[NodeUsage]] = {}
    for node in family.nodes:
        below.setdefault(node.made_of, []).append(node)

    def rows(node: NodeUsage, first: str, rest: str) -> Iterator[Row]:
        yield node_row(first + called(node, images), node)
        yield from branch(below.get((node.kind, node.id), []), rest)

    def branch(nodes: Sequence[NodeUsage], before: str) -> Iterator[Row]:
        for node in nodes:
            last = node is nodes[-1]
            first, rest = (drawn[1], drawn[3]) if last else (drawn[0], drawn[2])
            yield from rows(node, before + first, before + rest)

    roots = below.get(None, [])
    if len(roots) == 1:
        yield from rows(roots[0], "", "")
        return
    yield sum_row("(made of what is deleted)", family.total_bytes)
    yield from branch(roots, "")


def called(node: NodeUsage, images: Mapping[int, str]) -> str:
    """Return the name of a node, with what it is unless it is a volume that is in use."""
    if node.in_trash:
        return f"trash/{node.name}"
    if node.kind is NodeKind.VOLUME:
        return node.name
    image = images.get(node.id)
    return f"snapshot/{node.name}" if image is None else f"image/{image}"


def node_row(name: str, node: NodeUsage) -> Row:
    """Format a row of TITLES_WITH_FREED."""
    exclusive = node.space.exclusive_bytes
    return (
        name,
        format_size(node.size_bytes),
        format_size(exclusive),
        format_size(node.space.shared_bytes),
        format_size(exclusive if node.freed_bytes is None else node.freed_bytes),
        format_size(node.with_below_bytes),
    )


def sum_row(name: str, total_bytes: int) -> Row:
    """Format a row that has nothing but a sum."""
    return (name, "", "", "", "", format_size(total_bytes))
