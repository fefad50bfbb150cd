"""A limit on address space: it is told what for and how much, and a smaller index fits."""

from __future__ import annotations

from pathlib import Path

from .process import Bockd, program, serving

LIMIT_BYTES = 8 << 30
"""More than the daemon needs without its index."""


def test_too_little_address_space_is_refused_with_the_size_that_is_needed(
    pool: Path, tmp_path: Path
) -> None:
    limited = (program("prlimit"), f"--as={LIMIT_BYTES}", "--")
    told = Bockd(pool, tmp_path / "log", launcher=limited).refusal_to_start()
    assert "1024 GiB of address space" in told
    assert "index_map_gib" in told

    config = tmp_path / "bockd.toml"
    config.write_text("[pool]\nindex_map_gib = 1\n")
    with serving(pool, config=config, launcher=limited) as daemon:
        daemon.bock("volume", "create", "v", "--size", "1M")
        with daemon.connected("v") as client:
            client.pwrite(b"x" * 4096, 0)
        daemon.stop()
        # Whoever comes beside it has no configuration, and maps as much.
        result = daemon.run(*limited, program("bockd"), "check")
        assert result.status == 0, result
        backup = (program("bockd"), "backup", str(pool), str(tmp_path / "backup"))
        assert daemon.run(*limited, *backup).status == 0
        result = daemon.run(*limited, program("bockd"), "check", str(tmp_path / "backup"))
        assert result.status == 0, result
