"""A guest for each test that asks for one; its user space is packed once, and booted once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from .booted import Booted, save
from .host import become_host, with_python
from .initramfs import build_initramfs
from .pythondisk import build_python_disk
from .vm import Guest


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


@pytest.fixture(scope="session")
def booted(initramfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Booted:
    return save(initramfs, tmp_path_factory.mktemp("booted"))


@pytest.fixture(scope="session")
def booted_host(
    initramfs: Path, python_disk: Path, tmp_path_factory: pytest.TempPathFactory
) -> Booted:
    """One that is a host (`GuestHost`)."""
    room = tmp_path_factory.mktemp("booted")
    return save(initramfs, room, *with_python(python_disk), prepare=become_host)


@pytest.fixture
def guest(booted: Booted, tmp_path: Path) -> Iterator[Guest]:
    with booted.guest(tmp_path / "console.log") as running:
        yield running
