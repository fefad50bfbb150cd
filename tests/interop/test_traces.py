"""Recordings of what libnbd and fio send, and their replays, by bock and by fio."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbd
import pytest

from bockd.model import KIB, MIB
from bockd.trace.reading import open_trace
from bockd.trace.records import FUA, NO_HOLE, Ending, Kind, Record
from tests.trace.samples import places, read_all, record, write_trace

from ..daemon.process import PROGRAM_SECONDS, Bockd, program


class Recorder:
    """`bock trace record`, once it records."""

    def __init__(self, daemon: Bockd, volume: str, path: Path, *options: str) -> None:
        self.path = path
        main, other = pty.openpty()  # at a terminal it says when it has begun
        self.process = subprocess.Popen(
            [program("bock"), "trace", "record", volume, "-o", path, "--json", *options],
            stdout=subprocess.PIPE,
            stderr=other,
            text=True,
            env=daemon.environment,
        )
        os.close(other)
        said = b""
        while b"Ctrl-C" not in said:
            said += os.read(main, 4096)
        self._main = main

    def wait(self) -> dict[str, object]:
        """Return what it says at its end."""
        said, _ = self.process.communicate(timeout=PROGRAM_SECONDS)
        os.close(self._main)
        assert self.process.returncode == 0, said
        document: dict[str, object] = json.loads(said)
        return document

    def end(self, number: signal.Signals = signal.SIGINT) -> dict[str, object]:
        self.process.send_signal(number)
        return self.wait()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self._main)


@contextmanager
def recording(daemon: Bockd, volume: str, path: Path) -> Iterator[None]:
    recorder = Recorder(daemon, volume, path)
    yield
    assert recorder.end()["lost"] == 0


def volume_of(daemon: Bockd, name: str, size: str = "16M") -> str:
    daemon.bock("volume", "create", name, "--size", size)
    return name


def send_known(client: nbd.NBD) -> list[tuple[Kind, int, int, int]]:
    """Send one request after the other; what they were."""
    zeros = bytes(4096)
    client.pwrite(b"a" * 4096, 8192)
    client.pwrite(b"b" * 512, 1024, nbd.CMD_FLAG_FUA)
    client.pread(100, 8190)
    client.pread(4096, 8 * MIB)
    client.zero(64 * KIB, 128 * KIB, nbd.CMD_FLAG_NO_HOLE)
    client.zero(4096, MIB)
    client.trim(8192, 4096, nbd.CMD_FLAG_FUA)
    client.cache(4096, 0)
    client.flush()
    client.pwrite(zeros * 512, 4 * MIB)
    client.pread(3 * MIB, 4 * MIB)
    with pytest.raises(nbd.Error):
        client.pread(512, 16 * MIB)
    return [
        (Kind.WRITE, 0, 8192, 4096),
        (Kind.WRITE, FUA, 1024, 512),
        (Kind.READ, 0, 8190, 100),
        (Kind.READ, 0, 8 * MIB, 4096),
        (Kind.ZERO, NO_HOLE, 128 * KIB, 64 * KIB),
        (Kind.ZERO, 0, MIB, 4096),
        (Kind.TRIM, FUA, 4096, 8192),
        (Kind.CACHE, 0, 0, 4096),
        (Kind.FLUSH, 0, 0, 0),
        (Kind.WRITE, 0, 4 * MIB, 2 * MIB),
        (Kind.READ, 0, 4 * MIB, 3 * MIB),
    ]


def shown(records: list[Record]) -> list[tuple[Kind, int, int, int]]:
    return [(one.kind, one.flags, one.offset, one.length) for one in records]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_recording_is_exact_and_complete(
    daemon: Bockd, tmp_path: Path, number: signal.Signals
) -> None:
    """However it is ended. What was refused is not in it."""
    volume = volume_of(daemon, f"exact-{number.name}")
    recorder = Recorder(daemon, volume, tmp_path / "t")
    with daemon.connected(volume) as client:
        client.set_strict_mode(0)  # to send what the server refuses
        sent = send_known(client)
    said = recorder.end(number)
    assert (said["requests"], said["lost"], said["bytes"]) == (
        len(sent), 0, (tmp_path / "t").stat().st_size
    )  # fmt: skip
    with open_trace(str(tmp_path / "t")) as trace:
        records = list(trace.records)
        assert shown(records) == sent
        assert trace.ending == Ending(complete=True, lost=0)
        header = trace.header
    assert (header.volume, header.size_bytes, header.block_bytes) == (volume, 16 * MIB, 4096)
    times = [one.time_ns for one in records]
    assert times == sorted(times)
    assert all(one.latency_ns > 0 for one in records)


def test_a_killed_recorder_leaves_what_it_had(daemon: Bockd, tmp_path: Path) -> None:
    """And the volume can be recorded again once the daemon has noticed."""
    volume = volume_of(daemon, "killed")
    recorder = Recorder(daemon, volume, tmp_path / "t")
    with daemon.connected(volume) as client:
        sent = send_known_plain(client)
        while len(read_all(tmp_path / "t")) < len(sent):
            pass
    recorder.kill()
    with open_trace(str(tmp_path / "t")) as trace:
        assert shown(list(trace.records)) == sent
        assert not trace.ending.complete
    said = daemon.refusal("trace", "record", volume, "-o", tmp_path / "u")
    assert "is being recorded already; a recorder that died is forgotten after 30 seconds" in said
    assert not (tmp_path / "u").exists()


def send_known_plain(client: nbd.NBD) -> list[tuple[Kind, int, int, int]]:
    for number in range(10):
        client.pread(4096, number * 4096)
    return [(Kind.READ, 0, number * 4096, 4096) for number in range(10)]


def test_a_recording_ends_by_itself(daemon: Bockd, tmp_path: Path) -> None:
    """When its time is over, and when its file is as large as it may be."""
    volume = volume_of(daemon, "limits")
    said = Recorder(daemon, volume, tmp_path / "t", "--seconds", "0.2").wait()
    assert said["requests"] == 0
    assert read_all(tmp_path / "t") == []
    recorder = Recorder(daemon, volume, tmp_path / "u", "--max-size", "1K")
    with daemon.connected(volume) as client:
        while recorder.process.poll() is None:
            client.pread(512, 0)
    assert recorder.wait()["lost"] == 0
    assert len(read_all(tmp_path / "u")) >= 20
    refused = daemon.refusal("trace", "record", volume, "-o", tmp_path / "u")
    assert refused.endswith("/u exists: say --force to replace it")
    assert "no volume 'nobody'" in daemon.refusal(
        "trace", "record", "nobody", "-o", tmp_path / "u", "--force"
    )
    assert len(read_all(tmp_path / "u")) >= 20  # it is not lost


def test_a_recording_goes_through_a_pipe(daemon: Bockd, tmp_path: Path) -> None:
    volume = volume_of(daemon, "piped")
    bock = program("bock")
    shell = f"{bock} trace record {volume} -o - --seconds 0.1 | {bock} trace report - --json"
    found = json.loads(daemon.tool("sh", "-c", shell))
    assert (found["header"]["volume"], found["trace"]["complete"]) == (volume, True)


# -- fio -----------------------------------------------------------------------------------------


def fio(daemon: Bockd, work: Path, *options: str) -> dict[str, object]:
    """Run one job over NBD; what it says of it."""
    output = work / "fio.json"
    daemon.tool(
        "fio", "--name=job", "--ioengine=nbd", "--thread", "--output-format=json",
        f"--output={output}", *options,
    )  # fmt: skip
    text = output.read_text()
    assert "bad iolog" not in text
    (job,) = json.loads(text[text.index("{") :])["jobs"]
    assert job["error"] == 0
    return dict(job)


def test_fio_and_we_record_the_same(daemon: Bockd, tmp_path: Path) -> None:
    """Of a run with requests of all sizes, 32 under way: both have the same ones, and those that
    fio replays of ours are the same again."""
    volume = volume_of(daemon, "fio")
    uri = f"--uri={daemon.uri(volume)}"
    load = ("--rw=randrw", "--bsrange=512-64k", "--bs_unaligned=1", "--size=8M", "--iodepth=32")
    theirs, ours, again = (tmp_path / name for name in ("theirs", "ours", "again"))
    with recording(daemon, volume, ours):
        fio(daemon, tmp_path, uri, *load, "--fsync=16", f"--write_iolog={theirs}")
    sent = Counter(places(read_all(ours)))
    assert sent == Counter(places(read_all(theirs)))
    assert sent.total() > 200

    iolog = tmp_path / "iolog"
    said = daemon.bock("trace", "convert", ours, iolog)
    assert (said["requests"], said["left_out"]) == (sent.total(), 0)
    with recording(daemon, volume, again):
        fio(daemon, tmp_path, uri, "--iodepth=32", f"--read_iolog={iolog}")
    assert Counter(places(read_all(again))) == sent


def test_we_replay_what_fio_has_recorded(daemon: Bockd, tmp_path: Path) -> None:
    source, target = volume_of(daemon, "fio-source"), volume_of(daemon, "fio-target")
    load = ("--rw=randrw", "--bs=4k", "--size=1M", "--fsync=8")
    iolog, ours = tmp_path / "iolog", tmp_path / "ours"
    fio(daemon, tmp_path, f"--uri={daemon.uri(source)}", *load, f"--write_iolog={iolog}")
    with recording(daemon, target, ours):
        said = daemon.bock(
            "trace", "replay", iolog, target, "--write-data", "zeros", "--depth", "1"
        )
    recorded = read_all(iolog)
    assert places(read_all(ours)) == places(recorded)
    assert said["requests"] == len(recorded)
    assert {kind["kind"]: kind["recorded_us"] for kind in said["kinds"]} == {
        "read": {}, "write": {}, "flush": {}
    }  # fmt: skip


# -- replay --------------------------------------------------------------------------------------


def test_a_replay_sends_the_same_requests(daemon: Bockd, tmp_path: Path) -> None:
    source, target = volume_of(daemon, "replay-source"), volume_of(daemon, "replay-target")
    with recording(daemon, source, tmp_path / "t"), daemon.connected(source) as client:
        client.set_strict_mode(0)
        sent = send_known(client)
    for options in (("--speed", "max"), ()):
        with recording(daemon, target, tmp_path / "again"):
            said = daemon.bock(
                "trace", "replay", tmp_path / "t", target, "--write-data", "random:5", "--yes",
                *options,
            )  # fmt: skip
        assert shown(read_all(tmp_path / "again")) == sent
        assert said["requests"] == len(sent)
        assert all(kind["replayed_us"]["p50"] > 0 for kind in said["kinds"])
        assert all(kind["recorded_us"]["p50"] > 0 for kind in said["kinds"])
        (tmp_path / "again").unlink()


def test_a_replay_keeps_the_gaps(daemon: Bockd, tmp_path: Path) -> None:
    """And divides them by the speed, or leaves them out: the times are those that the daemon sees,
    and no replay is faster than its speed allows."""
    target = volume_of(daemon, "gaps")
    sent = [record(number * 50_000_000, offset=number * 4096) for number in range(8)]
    trace = write_trace(tmp_path / "t", sent)
    for speed, least_ns in (("1", 50_000_000), ("5", 10_000_000), ("max", 0)):
        again = tmp_path / speed
        with recording(daemon, target, again):
            daemon.bock("trace", "replay", trace, target, "--speed", speed)
        times = [one.time_ns for one in read_all(again)]
        # The daemon may see one late and the next one in time, so not each gap is so long.
        assert times[-1] - times[0] >= 6 * least_ns


def test_seeded_data_is_the_same_each_time(daemon: Bockd, tmp_path: Path) -> None:
    trace = write_trace(
        tmp_path / "t",
        [record(number, Kind.WRITE, number * 12_288, 4096 + number) for number in range(300)],
    )
    contents = []
    for name, data in (("a", "random:5"), ("b", "random:5"), ("c", "random:6"), ("d", "zeros")):
        volume = volume_of(daemon, f"seeded-{name}")
        daemon.bock("trace", "replay", trace, volume, "--write-data", data, "--speed", "max")
        with daemon.connected(volume) as client:
            contents.append(client.pread(4 * MIB, 0))
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]
    assert contents[3] == bytes(4 * MIB)
    written = bytearray(4 * MIB)
    for number in range(300):
        begin = number * 12_288
        piece = contents[0][begin : begin + 4096 + number]
        assert len(set(piece)) > 200  # random
        written[begin : begin + 4096 + number] = piece
    assert bytes(written) == contents[0]  # and nothing else was written


def test_many_requests_are_on_their_way(daemon: Bockd, tmp_path: Path) -> None:
    """Reads and writes that neither side's socket could hold."""
    target = volume_of(daemon, "on-their-way", "64M")
    kinds = (Kind.READ, Kind.WRITE)
    trace = write_trace(
        tmp_path / "t",
        [record(0, kinds[n % 2], n % 32 * 2 * MIB, 2 * MIB, order=n) for n in range(200)],
    )
    said = daemon.bock("trace", "replay", trace, target, "--write-data", "random", "--depth", "128")
    assert [kind["requests"] for kind in said["kinds"]] == [100, 100]


def test_what_must_not_be_replayed_is_refused(daemon: Bockd, tmp_path: Path) -> None:
    volume = volume_of(daemon, "small", "1M")
    path, replay = tmp_path / "t", ("trace", "replay")
    write_trace(path, [record(0, Kind.READ, MIB, 512)])
    assert daemon.refusal(*replay, path, volume).endswith(
        "(small) has only 1048576 (1 MiB): replay it on a volume of that size"
    )
    write_trace(path, [record(0, Kind.WRITE, 0, 512), record(1, Kind.TRIM), record(2)])
    said = daemon.refusal(*replay, path, volume)
    assert "the trace has 2 writes, trims and zeroes, which would destroy what volume" in said
    assert "say --write-data zeros or random, or --reads-only" in said
    reads = daemon.bock(*replay, path, volume, "--reads-only")
    assert [(kind["kind"], kind["requests"]) for kind in reads["kinds"]] == [("read", 1)]
    assert "has no requests to replay" in daemon.refusal(*replay, write_trace(path, []), volume)
    write_trace(path, [record(0, Kind.WRITE, 0, 512), record(1)])
    path.write_bytes(path.read_bytes()[:-50] + b"?" * 50)
    assert "record 2 of the trace is damaged" in daemon.refusal(
        *replay, path, volume, "--write-data", "random"
    )
    with daemon.connected(volume) as client:
        assert client.pread(MIB, 0) == bytes(MIB)  # nothing was written in any of these
    for wrong in (("--speed", "0"), ("--write-data", "noise"), ("--depth", "0")):
        daemon.misuse(*replay, path, volume, *wrong)
    both = ("--write-data", "zeros", "--reads-only")
    assert "not both" in daemon.misuse(*replay, path, volume, *both)


def test_a_person_is_asked_before_data_is_overwritten(daemon: Bockd, tmp_path: Path) -> None:
    volume = volume_of(daemon, "asked", "1M")
    trace = write_trace(tmp_path / "t", [record(0, Kind.WRITE, 0, 512)])
    main, other = pty.openpty()
    process = subprocess.Popen(
        [program("bock"), "trace", "replay", trace, volume, "--write-data", "random"],
        stdin=other, stdout=other, stderr=other, env=daemon.environment,
    )  # fmt: skip
    os.close(other)
    said = b""
    while b"[y/N]" not in said:
        said += os.read(main, 4096)
    assert b"Overwrite volume" in said
    os.write(main, b"n\n")
    assert process.wait(PROGRAM_SECONDS) == 1
    os.close(main)
    with daemon.connected(volume) as client:
        assert client.pread(512, 0) == bytes(512)


def test_an_interrupted_replay_ends(daemon: Bockd, tmp_path: Path) -> None:
    volume = volume_of(daemon, "interrupted", "1M")
    trace = write_trace(tmp_path / "t", [record(0), record(3600 * 10**9)])
    with recording(daemon, volume, tmp_path / "r"):
        process = subprocess.Popen(
            [program("bock"), "trace", "replay", trace, volume],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=daemon.environment,
        )  # fmt: skip
        while not read_all(tmp_path / "r"):
            pass  # the first request has come
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PROGRAM_SECONDS)
    assert (process.returncode, said) == (130, b"\nbock: interrupted\n")
