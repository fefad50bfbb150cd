"""What all tests share: reports that can travel from the process that ran the test, and examples
that may take as long as a busy machine takes for them."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from hypothesis import settings

# Hypothesis allows 200 ms an example by default, which a loaded machine exceeds.
settings.register_profile("bockd", deadline=None)
settings.load_profile("bockd")

# Helpers that assert for several test modules: their failures show what was compared, too.
pytest.register_assert_rewrite(
    "tests.config.served",
    "tests.crash.failpoints.run",
    "tests.daemon.damaged_volume",
    "tests.openstack.requests",
)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Reports are sent as UTF-8, and some tests log on purpose what cannot be written so."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report
