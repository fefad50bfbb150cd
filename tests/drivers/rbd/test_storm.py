"""Two daemons on one pool, killed and hung at random: a short storm, and what a storm notices."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.drivers.rbd.ceph import need_modules
from tests.drivers.rbd.cluster import Cluster
from tests.drivers.rbd.storm.mutations import Mutation
from tests.drivers.rbd.storm.storm import play

need_modules()

SEED = 1


def test_a_short_storm_loses_nothing(ceph: Cluster, tmp_path: Path) -> None:
    counts = play(tmp_path, ceph, SEED, kills=3, hangs=2, osd_kills=0)
    print(f"{counts}\n{counts.table()}")


@pytest.mark.ceph_trouble
@pytest.mark.parametrize("mutation", Mutation)
def test_a_storm_notices(ceph: Cluster, tmp_path: Path, mutation: Mutation) -> None:
    with pytest.raises(AssertionError, match=r"holds|landed"):
        play_until_it_fails(ceph, tmp_path, mutation)


def play_until_it_fails(ceph: Cluster, work: Path, mutation: Mutation) -> None:
    for seed in range(1, 4):
        play(work, ceph, seed, kills=0, hangs=8, osd_kills=0, mutation=mutation)
