"""Plays random lives of a volume with write-back: `python -m tests.drivers.writeback.lives`."""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
from collections import Counter
from pathlib import Path

from .mutations import MUTATIONS, Mutation, nothing
from .world import World


def live(seed: int, root: Path, mutate: Mutation, steps: int) -> World:
    """Play one life. Raises ViolationError."""
    world = World(seed, root, mutate)
    try:
        world.play(steps)
    finally:
        world.dispose()
        shutil.rmtree(root, ignore_errors=True)
    return world


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lives", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--mutation", choices=MUTATIONS)
    said = parser.parse_args()
    mutation = MUTATIONS[said.mutation] if said.mutation else nothing
    counts: Counter[str] = Counter()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as root:
        for seed in range(said.seed, said.seed + said.lives):
            try:
                world = live(seed, Path(root) / "life", mutation, said.steps)
            except BaseException as error:
                error.add_note(f"seed {seed}")
                raise
            counts.update(world.counts)
        print(dict(counts))


if __name__ == "__main__":
    _main()
