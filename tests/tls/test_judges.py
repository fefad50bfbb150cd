"""Other people's NBD clients through TLS: libnbd and its tools, QEMU's, fio. (nbd-client needs a
kernel device: tests/guest/test_tls.py.)"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbd
import pytest

from tests.attach.tenant import Attached, Tenant
from tests.daemon.process import Bockd, program, serving
from tests.tls.configured import configuration
from tests.tls.conftest import Pki

MIB = 1 << 20


@pytest.fixture(scope="module")
def daemon(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bockd]:
    """NBD over TCP is TLS only; clients may show a certificate."""
    work = tmp_path_factory.mktemp("daemon")
    config = configuration(work / "bockd.toml", pki.server, pki.ours, nbd_clients="optional")
    listen = "127.0.0.1:0"
    with serving(work / "data", nbd_listen=listen, api_listen=listen, config=config) as running:
        yield running


@pytest.fixture
def tenant(daemon: Bockd) -> Tenant:
    return Tenant(daemon)


@pytest.fixture
def attached(tenant: Tenant) -> Attached:
    return tenant.attach(tenant.create())


def with_certificates(attached: Attached, directory: Path) -> str:
    return f"{attached.uri}?tls-certificates={directory}"


def connect(attached: Attached, directory: Path) -> Any:
    """A libnbd handle that verifies the server."""
    handle = nbd.NBD()
    handle.set_uri_allow_local_file(True)
    handle.connect_uri(with_certificates(attached, directory))
    return handle


def tls_objects(directory: Path) -> list[str]:
    """For QEMU's tools."""
    return ["--object", f"tls-creds-x509,id=tls,endpoint=client,dir={directory}"]


def image_options(attached: Attached, daemon: Bockd) -> str:
    return (
        f"driver=nbd,server.type=inet,server.host=127.0.0.1,server.port={daemon.nbd_port},"
        f"export={attached.export},tls-creds=tls"
    )


def test_the_uri_of_an_attachment_names_tls(attached: Attached, daemon: Bockd) -> None:
    assert attached.uri == f"nbds://127.0.0.1:{daemon.nbd_port}/{attached.export}"
    assert attached.unix_uri.startswith("nbd+unix://")
    assert nbd.NBD().supports_tls()


def test_nbdinfo(daemon: Bockd, attached: Attached, pki: Pki) -> None:
    for directory in (pki.client, pki.nobody):
        shown = json.loads(daemon.tool("nbdinfo", "--json", with_certificates(attached, directory)))
        assert (shown["protocol"], shown["TLS"]) == ("newstyle-fixed", True)
        assert shown["exports"][0]["export-size"] == 1 << 30
    listed = daemon.run(
        program("nbdinfo"), "--list", "--json", with_certificates(attached, pki.nobody)
    )
    assert json.loads(listed.out)["exports"] == []


@pytest.mark.parametrize("directory", ["stranger", "expired"])
def test_a_bad_client_certificate_is_refused(
    daemon: Bockd, attached: Attached, pki: Pki, directory: str
) -> None:
    uri = with_certificates(attached, getattr(pki, directory))
    refused = daemon.run(program("nbdinfo"), uri)
    assert refused.status != 0, refused


def test_a_client_notices_another_server(daemon: Bockd, attached: Attached, pki: Pki) -> None:
    """It trusts another CA."""
    refused = daemon.run(program("nbdinfo"), with_certificates(attached, pki.misled))
    assert refused.status != 0, refused
    assert "certificate" in refused.err


def test_clients_without_tls_get_nothing_over_tcp(daemon: Bockd, attached: Attached) -> None:
    refused = daemon.run(program("nbdinfo"), attached.uri.replace("nbds://", "nbd://"))
    assert refused.status != 0, refused
    refused = daemon.run(
        program("qemu-img"), "info", f"nbd://127.0.0.1:{daemon.nbd_port}/{attached.export}"
    )
    assert "requires TLS" in refused.err, refused
    assert daemon.tool("nbdinfo", "--size", attached.unix_uri) == f"{1 << 30}\n"


def test_nbdcopy_there_and_back(
    daemon: Bockd, attached: Attached, pki: Pki, tmp_path: Path
) -> None:
    """Four connections with 64 requests each, answered as they are done."""
    image, back = tmp_path / "image", tmp_path / "back"
    make_image(image, random.Random(1).randbytes(32 * MIB))
    uri = with_certificates(attached, pki.client)
    daemon.tool("nbdcopy", "--connections=4", "--requests=64", "--flush", image, uri)
    daemon.tool("nbdcopy", "--connections=4", "--requests=64", uri, back)
    daemon.tool("cmp", image, back)


def make_image(image: Path, content: bytes) -> None:
    """A sparse file of a volume's size."""
    image.write_bytes(content)
    os.truncate(image, 1 << 30)


def test_libnbd_with_many_requests_of_all_sizes(attached: Attached, pki: Pki) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    handle = connect(attached, pki.client)
    assert handle.get_tls_negotiated()
    expected = bytearray(64 * MIB)
    pending: list[tuple[int, int, int]] = []
    for _ in range(300):
        length = chosen.choice([1, 511, 4096, 16384, 70_001, 300_000, 3 * MIB])
        offset = chosen.randrange(len(expected) - length)
        data = chosen.randbytes(length)
        # Two writes to one place at once may end in any order.
        while any(start < offset + length and offset < end for _, start, end in pending):
            finish(handle, pending)
        pending.append(
            (
                handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), offset),
                offset,
                offset + length,
            )
        )
        expected[offset : offset + length] = data
        if len(pending) > 60:
            finish(handle, pending)
    while pending:
        finish(handle, pending)
    assert handle.pread(len(expected), 0) == expected  # 64 MiB at once
    handle.shutdown()


def finish(handle: Any, pending: list[tuple[int, int, int]]) -> None:
    """Wait until one of the requests, or more, is done."""
    before = len(pending)
    while len(pending) == before:
        handle.poll(-1)
        pending[:] = [one for one in pending if not handle.aio_command_completed(one[0])]


def test_qemu_img_and_qemu_io(daemon: Bockd, attached: Attached, pki: Pki, tmp_path: Path) -> None:
    image = tmp_path / "image"
    make_image(image, random.Random(2).randbytes(16 * MIB))
    objects, there = tls_objects(pki.client), image_options(attached, daemon)
    daemon.tool(
        "qemu-img", "convert", *objects, "-n", "-f", "raw", "--target-image-opts", image, there
    )
    daemon.tool(
        "qemu-img", "compare", *objects, "--image-opts", f"driver=file,filename={image}", there
    )
    said = daemon.tool(
        "qemu-io",
        *objects,
        "--image-opts",
        there,
        *("-c", "aio_write -P 7 1M 2M", "-c", "aio_write -P 8 3M 64k", "-c", "aio_flush"),
        *("-c", "read -P 7 1M 2M", "-c", "read -P 8 3M 64k", "-c", "flush", "-c", "discard 1M 1M"),
        *("-c", "read -P 0 1M 1M"),
    )
    assert "failed" not in said


def test_qemu_verifies_the_server(daemon: Bockd, attached: Attached, pki: Pki) -> None:
    there = image_options(attached, daemon)
    for directory, complaint in (
        (pki.misled, "certificate"),
        (pki.stranger, ""),
    ):
        refused = daemon.run(
            program("qemu-img"), "info", *tls_objects(directory), "--image-opts", there
        )
        assert refused.status != 0, refused
        assert complaint in refused.err


def test_fio_verifies_what_it_wrote(daemon: Bockd, attached: Attached, tmp_path: Path) -> None:
    output = tmp_path / "fio.json"
    # fio has no option for certificates, and libnbd 1.22 verifies what 1.14 did not.
    uri = f"{attached.uri}?tls-verify-peer=false"
    daemon.tool(
        "fio",
        *("--name=verify", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite"),
        *("--bs=4k", "--size=16m", "--iodepth=32", "--verify=crc32c", "--verify_fatal=1"),
        *("--verify_state_save=0", "--output-format=json", f"--output={output}"),
    )
    text = output.read_text()  # warnings may come first
    (job,) = json.loads(text[text.index("{") :])["jobs"]
    assert job["error"] == 0
    assert job["read"]["io_bytes"] == job["write"]["io_bytes"] == 16 * MIB


def test_a_forced_detach_cuts_it(tenant: Tenant, attached: Attached, pki: Pki) -> None:
    handle = connect(attached, pki.client)
    handle.pwrite(b"before", 0)
    tenant.detach(attached.volume, force=True)
    with pytest.raises(nbd.Error):
        handle.pwrite(b"after!", 0)
    again = tenant.attach(attached.volume)
    with pytest.raises(nbd.Error):
        connect(attached, pki.client)
    fresh = connect(again, pki.client)
    assert fresh.pread(6, 0) == b"before"
    fresh.shutdown()


def test_a_detach_answers_first(tenant: Tenant, attached: Attached, pki: Pki) -> None:
    handle = connect(attached, pki.client)
    handle.pwrite(b"before", 0)
    tenant.detach(attached.volume)
    with pytest.raises(nbd.Error):
        handle.flush()
    assert tenant.show(attached.volume)["status"] == "available"


def test_its_secrets_are_not_logged(daemon: Bockd, attached: Attached, pki: Pki) -> None:
    connect(attached, pki.client).shutdown()
    assert attached.export not in daemon.log.read_text()
