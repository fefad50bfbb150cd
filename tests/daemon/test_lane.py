"""The daemon names the lane in use at once: nothing else shows that a compiler was missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.daemon.process import serving


def test_the_lane_in_use_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path / "data") as daemon:
        assert "  fast lane:        compiled" in daemon.announced
        info = daemon.bock("info")
        assert info["fast_lane"] == "compiled"
        assert info["new_data"].startswith("in pieces of ")
        daemon.stop()
        monkeypatch.setenv("BOCKD_FASTLANE", "off")
        daemon.start()
        assert "  fast lane:        Python only (BOCKD_FASTLANE=off)" in daemon.announced
        assert daemon.bock("info")["fast_lane"] == "Python only (BOCKD_FASTLANE=off)"
