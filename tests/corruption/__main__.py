"""All damages, or those of one kind.

python -m tests.corruption                               # what `make damage` runs
python -m tests.corruption --kind 'leaves: key' --seed 1 # each of one kind again
python -m tests.corruption --repair --each 5             # what `check --repair` leaves alone
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

from tests.corruption.damages import Damage, all_damages, sample
from tests.corruption.judge import Verdict, judge_all, with_answers
from tests.corruption.specimen import Truth, make_specimen


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.corruption")
    parser.add_argument("--seed", type=int, default=None, help="of bits and bytes (the time)")
    parser.add_argument("--each", type=int, default=None, help="at most so many of a kind")
    parser.add_argument("--kind", default="", help="kinds that contain this")
    parser.add_argument("--repair", action="store_true", help="of the index, then repaired")
    given = parser.parse_args()
    seed = int(time.time()) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    failures = 0
    with tempfile.TemporaryDirectory(prefix="damage-", dir=memory()) as scratch:
        for killed in (False, True):
            random = Random(seed)
            made = make_specimen(Path(scratch) / f"killed-{killed}", killed=killed)
            truth = with_answers(made, Path(scratch) / "copy")
            damages = [one for one in all_damages(truth, random) if given.kind in one.kind]
            if given.repair:
                damages = [one for one in damages if one.part == "index"]
            if given.each is not None:
                damages = sample(damages, random, given.each)
            failures += report(truth, damages, Path(scratch), killed=killed, repair=given.repair)
    sys.exit(1 if failures else 0)


def report(
    truth: Truth, damages: list[Damage], scratch: Path, *, killed: bool, repair: bool
) -> int:
    """Judge each, and print what is wrong and what became of the rest."""
    ends: Counter[str] = Counter()
    failures = 0
    for number, (damage, verdict) in enumerate(judge_all(truth, damages, scratch, repair=repair)):
        print(f"{number} of {len(damages)}", end="\r", file=sys.stderr, flush=True)
        ends[end_of(verdict)] += 1
        wrong = (
            complaints_of_repair(truth, verdict) if repair else complaints(truth, damage, verdict)
        )
        for problem in wrong:
            failures += 1
            print(f"{damage.kind}, {damage.what}, killed {killed}: {problem}", flush=True)
    state = "killed" if killed else "closed"
    print(f"{state}: {len(damages)} damages; {dict(ends)}; {failures} failures", flush=True)
    return failures


def memory() -> str | None:
    """A place for copies that costs no disk, where there is one: thousands are made and synced."""
    place = Path("/dev/shm")
    return str(place) if place.is_dir() else None


def end_of(verdict: Verdict) -> str:
    """What became of the damage, in a word or two."""
    if verdict.pool != "opened":
        return "pool refused"
    if verdict.refused:
        return "some refused"
    return "all right" if verdict.check == "clean" else "all right, reported"


def complaints(truth: Truth, damage: Damage, verdict: Verdict) -> list[str]:
    """What is wrong with what became of it."""
    found = list(verdict.wrong)
    if damage.only is not None:
        spared = {f"{k} {n}" for k, n in truth.content if (k, n) != ("volume", damage.only)}
        if missing := spared - set(verdict.right):
            found.append(
                f"not served for the damage of another: {sorted(missing)}; {verdict.refused}"
            )
    return found


def complaints_of_repair(truth: Truth, verdict: Verdict) -> list[str]:
    """What should not be when a damaged index was repaired and then became as it was."""
    lost = {f"{kind} {number}" for kind, number in truth.content} - {*verdict.right}
    return [*verdict.wrong, *(f"{name} is lost" for name in sorted(lost))]


if __name__ == "__main__":
    main()
