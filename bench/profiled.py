"""What device profiles claim and what fio measures: `python -m bench.profiled [PICTURE.svg]`.

Each line has the latency at some percentiles, in milliseconds: as the profile claims it, computed
from the requests that the same seed leads to, and as fio measures it. The last lines are of short
fixed latencies, which say what can be kept. The picture has the same as curves.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import log10
from pathlib import Path
from random import Random

from bench.processes import Placement, run
from bench.servers import Daemon, bockd_daemon
from bockd.model import GIB, DeviceOperation, DeviceProfile
from bockd.profiles.builtin import built_in
from bockd.profiles.device import ProfiledDevice
from bockd.profiles.document import profile_document

BLOCK = 4096
VOLUME_BYTES = 4 * GIB
PERCENTS = (1, 5, 10, 25, 50, 75, 90, 95, 99)
PRINTED = (10, 50, 90, 99)


@dataclass(frozen=True)
class Curve:
    """Of one profile: milliseconds at each of `PERCENTS`."""

    name: str
    claimed: Sequence[float]
    measured: Sequence[float]


CASES: tuple[tuple[DeviceProfile, int, int], ...] = (
    # profile, requests, and how many of them at a time
    (built_in("hdd-7200"), 1500, 1),
    (built_in("hdd-5400"), 1000, 1),
    (built_in("cloud-network"), 10_000, 2),
    (built_in("ssd-sata"), 20_000, 1),
    (DeviceProfile(name="fixed 10 ms", read_us=10_000), 2000, 4),
    (DeviceProfile(name="fixed 1 ms", read_us=1_000), 4000, 1),
    (DeviceProfile(name="fixed 0.5 ms", read_us=500), 4000, 1),
    (DeviceProfile(name="fixed 0.2 ms", read_us=200), 8000, 1),
)

DRAWN = 5
"""So many of the cases are in the picture."""


def main() -> None:
    """Print what was measured, and draw it."""
    with tempfile.TemporaryDirectory(prefix="bench-profiled-", dir=Path.cwd()) as scratch:
        curves = list(_measured(Path(scratch)))
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(picture(curves[:DRAWN]))


def _measured(scratch: Path) -> Iterator[Curve]:
    with bockd_daemon(scratch / "bockd", Placement(None, None)) as daemon:
        uri = daemon.volume("profiled", VOLUME_BYTES).uri
        for profile, count, depth in CASES:
            _give(daemon, scratch, profile)
            curve = Curve(profile.name, claimed(profile, count, depth), fio(uri, count, depth))
            print(curve.name, flush=True)
            for percent in PRINTED:
                wanted, found = (
                    of[PERCENTS.index(percent)] for of in (curve.claimed, curve.measured)
                )
                print(f"  p{percent}: {wanted:8.3f} ms, measured {found:8.3f} ms "
                      f"({100 * (found / wanted - 1):+.1f} %)", flush=True)  # fmt: skip
            yield curve


def _give(daemon: Daemon, scratch: Path, profile: DeviceProfile) -> None:
    document = {**profile_document(profile), "name": profile.name.replace(" ", "-")}
    (scratch / "profile.json").write_text(json.dumps(document))
    daemon.bock("volume", "profile", "profiled", "--off")
    daemon.bock("volume", "profile", "profiled", f"@{scratch / 'profile.json'}")


def claimed(profile: DeviceProfile, count: int, depth: int) -> list[float]:
    """Compute what so many reads at random places take: with so many under way, each comes when
    one is answered."""
    device, random = ProfiledDevice(profile, 0), Random(1)
    under_way = [0] * depth
    taken = []
    for _ in range(count):
        now = min(under_way)
        under_way.remove(now)
        offset = random.randrange(VOLUME_BYTES // BLOCK) * BLOCK
        plan = device.plan(DeviceOperation.READ, offset, BLOCK, size_bytes=VOLUME_BYTES, now=now)
        under_way.append(plan.due_ns)
        taken.append((plan.due_ns - now) / 1e6)
    taken.sort()
    return [taken[int(percent / 100 * count)] for percent in PERCENTS]


def fio(uri: str, count: int, depth: int) -> list[float]:
    """Measure the same number of reads."""
    with tempfile.TemporaryDirectory(prefix="bench-fio-") as scratch:
        output = Path(scratch) / "fio.json"
        percents = ":".join(map(str, PERCENTS))
        run(
            [
                "fio", "--name=profiled", "--ioengine=nbd", f"--uri={uri}", "--rw=randread",
                "--bs=4k", f"--size={VOLUME_BYTES}", f"--iodepth={depth}",
                f"--number_ios={count}", f"--percentile_list={percents}",
                "--output-format=json", f"--output={output}",
            ]
        )  # fmt: skip
        text = output.read_text()
    found = json.loads(text[text.index("{") :])["jobs"][0]["read"]["clat_ns"]["percentile"]
    return [found[f"{percent:.6f}"] / 1e6 for percent in PERCENTS]


# -- the picture -----------------------------------------------------------------------------------

_WIDTH, _HEIGHT = 900, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 700, 60, 400
_LEAST_MS, _MOST_MS = 0.1, 100.0
_COLOURS = ("#3b5b8d", "#7a4b8d", "#3b7d4f", "#b5523b", "#8d7a3b")


def _x(ms: float) -> float:
    part = log10(max(ms, _LEAST_MS) / _LEAST_MS) / log10(_MOST_MS / _LEAST_MS)
    return _LEFT + (_RIGHT - _LEFT) * part


def _y(percent: float) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * percent / 100


def picture(curves: Sequence[Curve]) -> str:
    """Draw the curves: lines are what is claimed, circles what was measured."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        '<text x="12" y="24" font-size="16">Latencies of device profiles</text>',
        '<text x="12" y="44" fill="#555555">Lines: as claimed. Circles: as fio measured them '
        "(random reads of 4 KiB).</text>",
    ]
    for ms in (0.1, 1, 10, 100):
        parts.append(
            f'<line x1="{_x(ms):.1f}" y1="{_TOP}" x2="{_x(ms):.1f}" y2="{_BOTTOM}" '
            f'stroke="#dddddd"/><text x="{_x(ms):.1f}" y="{_BOTTOM + 20}" '
            f'text-anchor="middle">{ms:g} ms</text>'
        )
    for percent in (0, 50, 90, 99):
        parts.append(
            f'<line x1="{_LEFT}" y1="{_y(percent):.1f}" x2="{_RIGHT}" y2="{_y(percent):.1f}" '
            f'stroke="#dddddd"/><text x="{_LEFT - 8}" y="{_y(percent) + 4:.1f}" '
            f'text-anchor="end">{percent} %</text>'
        )
    for number, (curve, colour) in enumerate(zip(curves, _COLOURS, strict=True)):
        points = zip(curve.claimed, PERCENTS, strict=True)
        line = " ".join(f"{_x(ms):.1f},{_y(percent):.1f}" for ms, percent in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{_x(ms):.1f}" cy="{_y(percent):.1f}" r="4" fill="none" '
            f'stroke="{colour}" stroke-width="1.5"/>'
            for ms, percent in zip(curve.measured, PERCENTS, strict=True)
        ]
        parts.append(
            f'<text x="{_RIGHT + 20}" y="{_TOP + 20 + 22 * number}" fill="{colour}">'
            f"{escape(curve.name)}</text>"
        )
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    main()
