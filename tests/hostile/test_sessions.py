"""Hostile sessions against a running daemon, beside innocent clients."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.amounts import amount
from tests.hostile.conftest import Attacked
from tests.hostile.judge import judge
from tests.hostile.live import converse
from tests.hostile.properties import played
from tests.hostile.sessions import Session, sessions

EXAMPLES = amount(40)


def hold_a_session(attacked: Attacked, frontend: str, session: Session) -> None:
    """One session; its end comes, and what was said is well-formed."""
    target = attacked.target
    foreseen = judge(session.sent, bytes(played([session.sent], target).replies), target)
    if foreseen.changes_above(target.reach, target.size):
        return  # its requests mean harm to an innocent client's data, and have a right to
    heard = converse(attacked.frontends[frontend], session.pieces())
    verdict = judge(session.sent, heard.received, target)
    assert verdict.entered == foreseen.entered or heard.reset
    assert not verdict.truncated or not verdict.at_a_border or heard.reset
    if verdict.at_a_border and not heard.reset:
        assert not verdict.unanswered


@pytest.mark.parametrize("frontend", ["unix", "tcp"])
def test_sessions(attacked: Attacked, frontend: str) -> None:

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(session=sessions(attacked.target))
    def attack(session: Session) -> None:
        hold_a_session(attacked, frontend, session)

    with attacked.under_attack():
        attack()
