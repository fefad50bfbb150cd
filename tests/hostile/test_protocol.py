"""The sans-I/O protocol against sessions made of right, nearly right and wrong messages."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings

from tests.amounts import amount
from tests.hostile.properties import OFFLINE, protocol_holds
from tests.hostile.sessions import Session, sessions


@settings(max_examples=amount(200), deadline=None, suppress_health_check=list(HealthCheck))
@given(session=sessions(OFFLINE))
def test_any_session_has_one_well_formed_answer(session: Session) -> None:
    protocol_holds(session)
