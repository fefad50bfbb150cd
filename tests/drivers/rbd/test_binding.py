"""What who lacks Ceph's modules is told; who does not ask for them needs none."""

from __future__ import annotations

import subprocess
import sys

import pytest

WITHOUT = "import sys; sys.modules[{missing!r}] = None\n"


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("missing", ["rados", "rbd"])
def test_without_the_modules_the_error_says_what_to_install(missing: str) -> None:
    if missing == "rbd":
        pytest.importorskip("rados", reason="without rados, that is what the error names")
    done = run(WITHOUT.format(missing=missing) + "import bockd.drivers.rbd.binding")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("bockd.errors.NotSupportedError: a pool in Ceph needs"), done.stderr
    assert f"{missing} cannot be imported" in last
    assert "python3-rados and python3-rbd" in last
    assert "rados.cpython-*.so and rbd.cpython-*.so" in last


def test_a_daemon_imports_none_of_them() -> None:
    done = run(
        "import sys, bockd.daemon.lifecycle, bockd.daemon.httpfrontends\n"
        "print({'rados', 'rbd'} & set(sys.modules))"
    )
    assert done.stdout == "set()\n", done.stderr
