"""What nbdkit is used for: its filters, TLS with pre-shared keys, socket activation, signals."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import time
from pathlib import Path

import nbd
import pytest

from bockd.drivers.local.format.layout import Layout

from ..daemon.process import PROGRAM_SECONDS, program
from ..interop.images import same_bytes, write_sparse_image
from .conftest import MIB, PoolDirectory, serving
from .nbdkit import PLUGIN, Nbdkit, plain_environment, run_nbdkit, served

KNOWN = b"kept" * 1024


def test_filter_rate(pool: PoolDirectory, tmp_path: Path) -> None:
    """8 MiB at 16 Mbit/s take four seconds, less the two that the filter lets through at once."""
    image = tmp_path / "image"
    image.write_bytes(os.urandom(8 * MIB))
    disk = pool.create("disk1")
    began = time.monotonic()
    served(f'nbdcopy {image} "$uri"', pool.parameter, disk, "rate=16M", filters=("--filter=rate",))
    assert time.monotonic() - began > 1
    served(f'nbdcopy "$uri" {tmp_path / "out"}', pool.parameter, disk)
    assert same_bytes(image, tmp_path / "out")


def test_filter_delay(pool: PoolDirectory) -> None:
    """Requests in flight are delayed side by side, as on a slow disk with a queue."""
    disk = pool.create("disk1")
    delays = ("delay-read=300ms", "delay-write=300ms")
    with serving(pool, disk, *delays, filters=("--filter=delay",)) as client:
        began = time.monotonic()
        for number in range(10):
            client.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(KNOWN)), number * 4096)
        while client.aio_in_flight():
            client.poll(-1)
        assert 0.3 < time.monotonic() - began < 2.5


def test_filter_error(pool: PoolDirectory) -> None:
    """Every write is refused, and none of them lands."""
    disk = pool.create("disk1")
    errors = ("error-pwrite=ENOSPC", "error-pwrite-rate=100%")
    with serving(pool, disk, *errors, filters=("--filter=error",)) as client:
        with pytest.raises(nbd.Error, match="No space left"):
            client.pwrite(KNOWN, 0)
        assert client.pread(4096, 0) == bytes(4096)


def test_filter_log(pool: PoolDirectory, tmp_path: Path) -> None:
    """The requests of a client, one line each, with the export's name."""
    disk, log = pool.create("disk1"), tmp_path / "requests.log"
    served(
        "qemu-io -f raw -c 'write -P 7 0 64k' -c flush \"$uri\"",
        pool.parameter,
        disk,
        f"logfile={log}",
        filters=("--filter=log",),
    )
    text = log.read_text()
    assert re.search(r"Connect .*export='disk1'|Connect .*size=0x800000", text), text
    assert re.search(r"Write .*offset=0x0 count=0x10000", text), text
    assert "Flush" in text


def test_filter_checkwrite(pool: PoolDirectory, tmp_path: Path) -> None:
    """nbdcopy compares: what is on the volume is the image, and a changed byte is found."""
    image = tmp_path / "image"
    write_sparse_image(image, 8 * MIB, seed=41)
    disk = pool.create("disk1")
    served(f'nbdcopy {image} "$uri"', pool.parameter, disk)
    compare, check = f'nbdcopy {image} "$uri"', ("--filter=checkwrite",)
    served(compare, pool.parameter, disk, filters=check)
    with Nbdkit(pool.path.parent, pool.parameter, disk) as nbdkit, nbdkit.connected() as client:
        byte = client.pread(1, 5 * MIB)[0]
        client.pwrite(bytes([byte ^ 1]), 5 * MIB)
    assert run_nbdkit(pool.parameter, disk, "--run", compare, filters=check).status != 0


def test_filter_cow(pool: PoolDirectory) -> None:
    """A scratch copy of a snapshot that vanishes with nbdkit."""
    pool.create("disk1")
    snapshot = pool.snapshot("disk1", "before")
    commands = "-c 'write -P 7 0 64k' -c 'read -P 7 0 64k'"
    said = served(
        f'qemu-io -f raw {commands} "$uri"', pool.parameter, snapshot, filters=("--filter=cow",)
    )
    assert "wrote 65536/65536" in said
    assert "verification failed" not in said
    said = served('qemu-io -r -f raw -c "read -P 0 0 64k" "$uri"', pool.parameter, snapshot)
    assert "verification failed" not in said


def test_three_filters_at_once(pool: PoolDirectory, tmp_path: Path) -> None:
    """nbdcopy, qemu-io and fio's verification through a stack of them."""
    image, back, log = tmp_path / "image", tmp_path / "back", tmp_path / "requests.log"
    write_sparse_image(image, 8 * MIB, seed=43)
    disk = pool.create("disk1")
    fio = (
        "fio --name=job --ioengine=nbd --rw=randwrite --bs=4k --iodepth=16 --size=2M "
        f"--verify=crc32c --verify_fatal=1 --verify_state_save=0 --aux-path={tmp_path}"
    )
    said = served(
        f'set -e; nbdcopy {image} "$uri"; nbdcopy "$uri" {back}; '
        f"qemu-io -f raw -c 'write -P 7 777 9999' -c 'read -P 7 777 9999' \"$uri\"; "
        f'{fio} --uri="$uri"',
        pool.parameter,
        disk,
        f"logfile={log}",
        "wdelay=1ms",
        f"statsfile={tmp_path / 'stats'}",
        filters=("--filter=log", "--filter=delay", "--filter=stats"),
    )
    assert same_bytes(image, back)
    assert "verification failed" not in said
    assert "err= 0" in said
    assert "Write" in log.read_text()


def test_tls_with_a_pre_shared_key(pool: PoolDirectory, tmp_path: Path) -> None:
    """Only who has the key gets in."""
    disk = pool.create("disk1")
    right, wrong = tmp_path / "keys.psk", tmp_path / "wrong.psk"
    for path in (right, wrong):
        path.write_text(f"alice:{secrets.token_hex(32)}\n")
        path.chmod(0o600)
    tls = ("--tls=require", f"--tls-psk={right}")
    with Nbdkit(pool.path.parent, pool.parameter, disk, filters=tls) as nbdkit:
        socket = f"socket={nbdkit.socket}"
        info = [program("nbdinfo"), "--json"]

        def ask(uri: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run([*info, uri], capture_output=True, text=True, check=False)

        good = ask(f"nbds+unix://alice@/?{socket}&tls-psk-file={right}")
        assert good.returncode == 0, good.stderr
        assert '"TLS": true' in good.stdout
        image, back = tmp_path / "image", tmp_path / "back"
        write_sparse_image(image, 8 * MIB, seed=42)
        uri = f"nbds+unix://alice@/?{socket}&tls-psk-file={right}"
        for source, target in ((str(image), uri), (uri, str(back))):
            subprocess.run([program("nbdcopy"), source, target], check=True)
        assert same_bytes(image, back)
        assert ask(f"nbds+unix://alice@/?{socket}&tls-psk-file={wrong}").returncode != 0
        assert ask(f"nbd+unix:///?{socket}").returncode != 0


def test_through_tls_and_three_filters(pool: PoolDirectory, tmp_path: Path) -> None:
    """nbdcopy, qemu-io and fio's verification. fio knows no keys: nbdkit relays for it."""
    disk, keys, log = pool.create("disk1"), tmp_path / "keys.psk", tmp_path / "requests.log"
    keys.write_text(f"alice:{secrets.token_hex(32)}\n")
    keys.chmod(0o600)
    image = tmp_path / "image"
    write_sparse_image(image, 8 * MIB, seed=44)
    context = ("--filter=log", "--filter=rate", "--filter=error", "--tls=require")
    with Nbdkit(
        pool.path.parent,
        *(pool.parameter, disk, f"logfile={log}", "rate=10G", "error-cache=EIO"),
        filters=(*context, f"--tls-psk={keys}"),
    ) as nbdkit:
        uri = f"nbds+unix://alice@/?socket={nbdkit.socket}&tls-psk-file={keys}"
        options = "driver=nbd,server.type=unix,tls-creds=key,tls-hostname=localhost"
        commands: list[list[str]] = [
            ["nbdcopy", str(image), uri],
            ["nbdcopy", uri, str(tmp_path / "back")],
            [
                *("qemu-io", "--object"),
                f"tls-creds-psk,id=key,endpoint=client,username=alice,dir={tmp_path}",
                *("-c", "write -P 7 777 9999", "-c", "read -P 7 777 9999"),
                *("--image-opts", f"{options},server.path={nbdkit.socket}"),
            ],
            [
                *("nbdkit", "-U", "-", "nbd", f"socket={nbdkit.socket}", "tls=require"),
                *(f"tls-psk={keys}", "tls-username=alice", "--run"),
                "fio --name=job --ioengine=nbd --rw=randwrite --bs=4k --iodepth=16 --size=2M "
                f"--verify=crc32c --verify_fatal=1 --verify_state_save=0 --aux-path={tmp_path} "
                '--uri="$uri"',
            ],
        ]
        for command in commands:
            done = subprocess.run(
                [program(command[0]), *command[1:]],
                capture_output=True,
                text=True,
                timeout=PROGRAM_SECONDS,
                check=False,
            )
            assert done.returncode == 0, (command, done.stdout, done.stderr)
            assert "verification failed" not in done.stdout
    assert same_bytes(image, tmp_path / "back")
    assert "Write" in log.read_text()


def test_socket_activation(pool: PoolDirectory, tmp_path: Path) -> None:
    """systemd's own starter: nbdkit begins when the first client comes."""
    disk, socket = pool.create("disk1"), tmp_path / "nbd.sock"
    nbdkit = [program("nbdkit"), "python", str(PLUGIN), pool.parameter, disk]
    with subprocess.Popen(
        [program("systemd-socket-activate"), f"--listen={socket}", *nbdkit],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=plain_environment(),
        text=True,
    ) as process:
        assert process.stderr is not None
        assert "Listening on" in process.stderr.readline()
        try:
            client = nbd.NBD()
            client.connect_uri(f"nbd+unix:///?socket={socket}")
            client.pwrite(KNOWN, 0)
            client.shutdown()
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=PROGRAM_SECONDS)
    assert process.returncode == 0
    with Nbdkit(pool.path.parent, pool.parameter, disk) as again, again.connected() as client:
        assert client.pread(4096, 0) == KNOWN


def test_a_clean_stop_closes_the_volume(pool: PoolDirectory) -> None:
    """SIGTERM with a client connected: nbdkit ends when it has gone. Then all is flushed, the
    journal applied and gone, the locks free."""
    disk = pool.create("disk1")
    nbdkit = Nbdkit(pool.path.parent, pool.parameter, disk)
    client = nbdkit.connect()
    client.pwrite(KNOWN * 2, 4096)
    assert Layout(pool.path).journal_segments()
    nbdkit.process.send_signal(signal.SIGTERM)
    del client
    nbdkit.stop()
    assert not Layout(pool.path).journal_segments()
    assert pool.daemon.check()["stray_blocks"] == 0
    with Nbdkit(pool.path.parent, pool.parameter, disk) as again, again.connected() as client:
        assert client.pread(8192, 4096) == KNOWN * 2


def test_sigkill_loses_nothing_that_was_answered(pool: PoolDirectory) -> None:
    """Promise D1, through the plugin: whoever opens the volume next finds all of it."""
    disk = pool.create("disk1")
    for round_number in range(1, 4):
        nbdkit = Nbdkit(pool.path.parent, pool.parameter, disk)
        client = nbdkit.connect()
        client.pwrite(b"%08d" % round_number * 512, round_number * 4096)
        client.trim(4096, (round_number - 1) * 4096)
        nbdkit.kill()
    with Nbdkit(pool.path.parent, pool.parameter, disk) as again, again.connected() as client:
        assert client.pread(3 * 4096, 0) == bytes(3 * 4096)
        assert client.pread(4096, 3 * 4096) == b"%08d" % 3 * 512
