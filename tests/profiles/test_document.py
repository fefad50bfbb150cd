"""Profiles as JSON: what is read, what is written, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bockd.errors import InvalidRequestError, NotFoundError
from bockd.profiles.builtin import BUILT_IN, built_in
from bockd.profiles.document import check_profile, parse_profile, profile_document, read_profile

DISK = profile_document(BUILT_IN["hdd-7200"])["disk"]


@pytest.mark.parametrize("name", BUILT_IN)
def test_profile_that_is_written_is_read_again(name: str) -> None:
    found = BUILT_IN[name]
    assert check_profile(found) is found
    assert built_in(name) is found
    assert parse_profile(json.dumps(profile_document(found))) == found


def test_unknown_name_says_which_there_are() -> None:
    with pytest.raises(NotFoundError, match=r"there are hdd-7200, .*@FILE is one of yours"):
        built_in("floppy")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"name": "two words"}, "its name 'two words' is not"),
        ({"read_ms": 5}, "there is no field read_ms"),
        ({"errors": [{"offset": 1}]}, r"there is no field errors\.offset"),
        ({"limits": {"iops": {"rate": 1}}}, r"there is no field limits\.iops\.rate"),
        ({"read_us": "5 ms"}, r"at `\$\.read_us`"),
        ({"read_us": 199}, "read_us has 199 us; it may be 200"),
        ({"read_us": -1}, "read_us has -1 us"),
        ({"read_us": 10**12}, "read_us has 1000000000000 us"),
        ({"read_us": {}}, "read_us has 0 percentiles"),
        ({"read_us": {str(n): 200 for n in range(65)}}, "read_us has 65 percentiles"),
        ({"read_us": {"p50": 100}}, "'p50', which is no percentile"),
        ({"read_us": {"101": 100}}, "'101', which is no percentile"),
        ({"read_us": {"nan": 100}}, "'nan', which is no percentile"),
        ({"read_us": {"5_0": 300}}, "'5_0', which is no percentile"),
        ({"read_us": {" 50\n": 300}}, r"' 50\\n', which is no percentile"),
        ({"read_us": {"\u0665\u0660": 300}}, r"'\\u0665\\u0660', which is no percentile"),
        ({"read_us": {"50." + "0" * 10: 300}}, "which is no percentile .* nine behind the point"),
        ({"read_us": {"50": 200, "50.0": 300}}, "the percentile 50 twice"),
        ({"read_us": {"50": 300, "99": 200}}, "300 us at 50 % and 200 us at 99 %"),
        ({"seed": -1}, "seed is -1"),
        ({"parallel": 0}, "parallel is 0"),
        ({"disk": DISK, "parallel": 2}, "leave parallel out"),
        ({"disk": {**DISK, "rpm": 0}}, "disk.rpm is 0"),
        ({"disk": {**DISK, "average_seek_us": 1100}}, "disk.average_seek_us is 1100"),
        ({"disk": {**DISK, "average_seek_us": 15_000}}, "disk.average_seek_us is 15000"),
        ({"disk": {**DISK, "track_seek_us": 15_000}}, "disk.track_seek_us is 15000"),
        ({"disk": {**DISK, "inner_bytes_per_second": 10**9}}, "inner_bytes_per_second"),
        ({"limits": {"iops": {"per_second": 0}}}, "iops is 0"),
        ({"credits_percent": 0}, "credits_percent means nothing without limits"),
        ({"errors": [{"operations": []}]}, "no request would fail"),
        ({"errors": [{"operations": ["erase"]}]}, "Invalid enum value 'erase'"),
        ({"errors": [{"percent": 0}]}, r"errors\[0\]\.percent is 0"),
        ({"errors": [{"errno": "EHOSTDOWN"}]}, "Invalid enum value 'EHOSTDOWN'"),
        ({"errors": [{}] * 65}, "it has 65 errors"),
        ({"stalls": [{"seconds": 1e9, "after_requests": 0}]}, r"stalls\[0\]\.seconds"),
        ({"stalls": [{"seconds": float("nan"), "after_requests": 0}]}, r"stalls\[0\]\.seconds"),
        ({"stalls": [{"seconds": 1}]}, "missing required field `after_requests`"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidRequestError, match=text):
        read_profile({"name": "tested", **fields})


HUGE = 10**4000
LONG = "\x1b[2J" + "z" * 100_000


@pytest.mark.parametrize(
    "fields",
    [
        {"name": LONG},
        {LONG: 1},
        {"limits": {LONG: 1}},
        {"read_us": HUGE},
        {"read_us": {LONG: 300}},
        {"read_us": LONG},
        {"seed": HUGE},
        {"disk": {**DISK, "rpm": -HUGE}},
        {"disk": {**DISK, "average_seek_us": HUGE}},
        {"limits": {"iops": {"per_second": HUGE}}},
        {"limits": {"iops": {"per_second": 1, "burst": HUGE}}},
        {"limits": {"iops": {"per_second": 1, "burst": 1, "burst_seconds": HUGE}}},
        {"limits": {"iops": {"per_second": 1}, "iops_size": HUGE}},
        {"errors": [{"operations": [LONG]}]},
        {"errors": [{"errno": LONG}]},
        {"errors": [{"offset_bytes": HUGE}]},
    ],
)
def test_refusals_are_one_short_line(fields: dict[str, Any]) -> None:
    """Whatever the profile has: they come on a terminal, and into the log."""
    with pytest.raises(InvalidRequestError) as refused:
        read_profile({"name": "tested", **fields})
    assert len(str(refused.value)) < 300
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_json_without_end_is_refused(opening: str) -> None:
    with pytest.raises(InvalidRequestError, match="nested too deeply"):
        parse_profile(opening * 100_000)


@pytest.mark.parametrize("text", ["", "[]", '"hdd"', "{", '{"read_us": 500}'])
def test_what_is_no_profile_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="the device profile cannot be used: "):
        parse_profile(text)
