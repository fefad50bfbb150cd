"""A guest for each test that asks for one; its user space is packed once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from .initramfs import build_initramfs
from .pythondisk import build_python_disk
from .vm import Guest, boot


@pytest.fixture(scope="session")
def initramfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("initramfs")
    image = work / "image.cpio"
    build_initramfs(work / "root", image)
    return image


@pytest.fixture(scope="session")
def python_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("python")
    image = work / "image"
    build_python_disk(work / "root", image)
    shutil.rmtree(work / "root")
    return image


@pytest.fixture
def guest(initramfs: Path, tmp_path: Path) -> Iterator[Guest]:
    with boot(initramfs, tmp_path / "console.log") as running:
        yield running
