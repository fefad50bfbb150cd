"""Plays random lives of a volume with write-back, and lives in which one rule is left out, which
must go wrong: `python -m tests.drivers.writeback.lives`."""

from __future__ import annotations

import argparse
import itertools
import logging
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from .mutations import MUTATIONS, Mutation, nothing
from .oracle import ViolationError
from .world import World

LIVES = 3000
STEPS = 120

MOST = 3000
"""Lives in which a mutation must have been noticed."""


def live(seed: int, root: Path, mutate: Mutation, steps: int, kind: type[World] = World) -> World:
    """Play one life. Raises ViolationError."""
    world: World | None = None
    try:
        world = kind(seed, root, mutate)
        world.play(steps)
    finally:
        if world is not None:
            world.dispose()
        shutil.rmtree(root, ignore_errors=True)
    return world


def noticed(
    mutate: Mutation, seeds: Iterable[int], root: Path, steps: int, kind: type[World] = World
) -> tuple[int, str]:
    """Return in which life, counted from one, a mutation went wrong, and how. Zero: in none."""
    for nth, seed in enumerate(seeds, 1):
        try:
            live(seed, root / str(seed), mutate, steps, kind)
        except ViolationError as error:
            return nth, str(error)
    return 0, ""


def _play(seeds: range, root: Path, steps: int) -> None:
    counts: Counter[str] = Counter()
    for seed in seeds:
        try:
            counts.update(live(seed, root / str(seed), nothing, steps).counts)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
    print(f"{len(seeds)} lives from seed {seeds.start}, nothing wrong: {dict(counts)}", flush=True)


def _mutate(names: Iterable[str], seed: int, root: Path, steps: int) -> bool:
    missed = []
    for name in names:
        began = time.monotonic()
        seeds = itertools.islice(itertools.count(seed), MOST)
        nth, how = noticed(MUTATIONS[name], seeds, root, steps)
        taken = time.monotonic() - began
        print(
            f"{name}: {f'life {nth}: {how}' if nth else 'NOT NOTICED'} ({taken:.1f} s)", flush=True
        )
        missed += [] if nth else [name]
    return not missed


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the first life (default: 0)")
    parser.add_argument("--lives", type=int, default=LIVES, help=f"how many (default: {LIVES})")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of each (default: {STEPS})")
    parser.add_argument("--mutation", choices=MUTATIONS, action="append", help="play only this")
    said = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as root:
        if not said.mutation:
            _play(range(said.seed, said.seed + said.lives), Path(root), said.steps)
        right = _mutate(said.mutation or MUTATIONS, said.seed, Path(root), said.steps)
    return 0 if right else 1


if __name__ == "__main__":
    raise SystemExit(_main())
