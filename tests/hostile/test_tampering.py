"""TLS sessions that somebody tampers with against a running daemon, beside innocent clients."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.amounts import amount
from tests.attach.tenant import Tenant
from tests.daemon.process import serving
from tests.hostile.conftest import Attacked
from tests.hostile.innocent import innocent
from tests.hostile.live import enter, received_until
from tests.hostile.sessions import MIB, Target
from tests.hostile.tampering import BLOCK, WRITES, Attack, attacks, carry_out, content
from tests.nbd.protocol import wire
from tests.tls.configured import configuration
from tests.tls.conftest import Pki
from tests.tls.served import client_context

EXAMPLES = amount(200)

INNOCENT_BLOCKS = 256


@pytest.fixture(scope="module")
def secured(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    """With TLS required over TCP. Both innocent clients are there by TLS, one on the attacked
    volume, the other, which comes again and again, on another one."""
    work = tmp_path_factory.mktemp("secured")
    config = configuration(work / "bockd.toml", pki.server, pki.ours, nbd_clients="optional")
    here = "127.0.0.1:0"
    with (
        serving(
            work / "pool", nbd_listen=here, api_listen=here, config=config, is_forked=False
        ) as daemon,
        ExitStack() as held,
    ):
        size = 8 * MIB
        names = []
        for name in ("attacked", "elsewhere"):
            made = daemon.bock("volume", "create", name, "--size", f"{size // MIB}M")
            names.append(Tenant(daemon).attach(made["id"]).export)
        frontend = ("localhost", daemon.nbd_port)
        first = size // BLOCK - INNOCENT_BLOCKS
        innocents = (
            innocent(frontend, names[0], first, INNOCENT_BLOCKS, tls=pki.client),
            innocent(frontend, names[1], 0, INNOCENT_BLOCKS, tls=pki.client, reconnect=True),
        )
        entered = tuple(held.enter_context(client) for client in innocents)
        yield Attacked(daemon, Target(names[0], size, first * BLOCK), entered)
        assert "lost a client: [SSL" not in daemon.log.read_text(), "an error without a name"


def test_tampering(secured: Attacked, pki: Pki) -> None:
    """However the client's bytes are tampered with, from its hello on: the connection ends, and
    nothing lands that was changed on the way or came behind it."""
    numbers = itertools.count(1)
    seen: list[bool] = []

    with (
        secured.under_attack(),
        enter(secured.unix, secured.target.name) as witness,
    ):

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(attack=attacks())
        def tamper(attack: Attack) -> None:
            number = next(numbers)
            context = client_context(pki.client)
            name, frontend = secured.target.name, secured.frontends["tcp"]
            outcome = carry_out(frontend, context, name, attack, number)
            assert outcome.acknowledged <= outcome.sound
            if outcome.untouched:
                assert outcome.acknowledged == WRITES
            witness.sendall(wire.request(0, 1, 0, WRITES * BLOCK))
            data = received_until(witness, 16 + WRITES * BLOCK)[16:]
            for write in range(outcome.sound, WRITES):
                assert data[write * BLOCK : (write + 1) * BLOCK] != content(number, write)
            seen.append(outcome.untouched)

        tamper()
    assert seen.count(True) > EXAMPLES // 10
    assert seen.count(False) > EXAMPLES // 10
