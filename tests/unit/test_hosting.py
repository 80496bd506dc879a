"""The shell that ``host add`` runs elsewhere, run here: what it does to a package that came damaged."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from common.errors import ConfigError
from eschedule.hosting import INSTALL, JOIN, LOOK, _package


def run(script: str, folder: Path, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    # No program but the shell's own ones is found that could change this machine.
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    for name in ("mktemp", "chmod", "cat", "sha256sum", "rm", "id", "tail", "grep", "env"):
        if not (tools / name).exists():
            (tools / name).symlink_to(next(path for path in (Path("/usr/bin") / name, Path("/bin") / name) if path.exists()))
    environment = {**os.environ, "TMPDIR": str(folder / "tmp"), "PATH": str(tools)}
    (folder / "tmp").mkdir(exist_ok=True)
    return subprocess.run(["/bin/sh", "-c", script], input=given, capture_output=True, check=False, env=environment, timeout=30)


def test_a_package_that_came_damaged_is_not_installed_and_leaves_nothing(tmp_path: Path) -> None:
    answer = run(INSTALL.format(digest=hashlib.sha256(b"whole").hexdigest()), tmp_path, b"who")
    assert answer.returncode != 0 and answer.stderr.decode().splitlines()[-1] == "the package came damaged"
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_package_that_cannot_be_installed_leaves_nothing_and_says_why(tmp_path: Path) -> None:
    answer = run(INSTALL.format(digest=hashlib.sha256(b"whole").hexdigest()), tmp_path, b"whole")
    assert answer.returncode != 0 and answer.stderr
    assert list((tmp_path / "tmp").iterdir()) == []


def test_where_debians_lists_are_missing_they_are_fetched_first(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    apt = tmp_path / "bin" / "apt-get"
    apt.write_text(
        '#!/bin/sh\nfor word; do case $word in update) echo update >>"$TMPDIR/did"; exit 0 ;; esac; done\n'
        'echo install >>"$TMPDIR/did"; grep -q update "$TMPDIR/did" || { echo "E: Unable to locate package"; exit 100; }\n'
    )
    apt.chmod(0o755)
    answer = run(INSTALL.format(digest=hashlib.sha256(b"whole").hexdigest()), tmp_path, b"whole")
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "tmp" / "did").read_text().split() == ["install", "update", "install"]


def test_a_machine_without_ecompute_says_so_and_a_join_there_fails(tmp_path: Path) -> None:
    assert run(LOOK, tmp_path).stdout == b"missing\n"
    assert run(JOIN.format(seconds=180.0, more=" --force"), tmp_path).returncode != 0
    assert JOIN.format(seconds=180.0, more=" --force").endswith("join - --json --wait-seconds 180 --force")


def test_what_is_no_debian_package_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.deb"
    with pytest.raises(ConfigError, match="cannot be read"):
        _package(file)
    file.write_bytes(b"PK\3\4")
    with pytest.raises(ConfigError, match="no Debian package"):
        _package(file)
