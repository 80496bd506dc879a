"""Where the benchmarks look for the programs that they measure beside ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import tools


@pytest.fixture(autouse=True)
def nothing_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tools, "_PATH", str(tmp_path / "bin"))
    return tmp_path / "bin"


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    return tmp_path / "tools"


def make(program: Path) -> Path:
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return program


def test_what_is_nowhere_is_none(unpacked):
    assert tools.nginx(unpacked) is None
    assert tools.virt_install(unpacked) is None


def test_an_installed_program_is_started_as_it_is(unpacked, nothing_installed):
    installed = make(nothing_installed / "virt-install")
    assert tools.virt_install(unpacked) == [str(installed)]


def test_an_unpacked_program_is_preferred_and_finds_its_libraries(unpacked, nothing_installed):
    make(nothing_installed / "virt-install")
    program = make(unpacked / "usr/bin/virt-install")
    (unpacked / "usr/lib/x86_64-linux-gnu").mkdir(parents=True)
    command = tools.virt_install(unpacked)
    assert command and command[0] == "env" and command[-1] == str(program)
    assert f"LD_LIBRARY_PATH={unpacked}/usr/lib/x86_64-linux-gnu" in command
    assert f"GI_TYPELIB_PATH={unpacked}/usr/lib/x86_64-linux-gnu/girepository-1.0" in command
