"""What is no Python and is needed at run time is in the wheel, too."""

from __future__ import annotations

from pathlib import Path

from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]


def test_pages_and_example_are_in_it() -> None:
    found = {one.distribution_path for one in WheelBuilder(str(ROOT)).recurse_included_files()}
    pages = Path(ROOT, "api/dashboard/static").iterdir()
    wanted = {str(one.relative_to(ROOT)) for one in pages} | {"bockd/config/bockd.example.toml"}
    assert len(wanted) > 5
    assert wanted - found == set()
