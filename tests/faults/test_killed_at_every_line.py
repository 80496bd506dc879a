"""Whoever is killed between any two lines of fetching, unpacking, converting and building leaves no image and no disk that is not
whole, and nothing that the next start does not tidy up.
"""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.disk_images import MIB, make_raw, qemu_img
from tests.support.image_server import ImageServer, body
from tests.support.processes import ROOT


@pytest.fixture
def server() -> Iterator[ImageServer]:
    made = ImageServer()
    yield made
    made.close()


def killed_at_every_line(directory: Path, image: str, *modules: str) -> int:
    """How many died."""
    command = [sys.executable, "-m", "tests.support.killed_lines", str(directory), image, *modules]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    died, _, of, _ = answer.stdout.split()
    assert int(died) > 0.95 * int(of), answer.stdout
    return int(died)


def test_a_packed_raw_image_of_a_server(server: ImageServer, tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "a.raw", size_mib=2)
    server.answers["/a.raw.gz"] = body(gzip.compress(raw.read_bytes()))
    assert killed_at_every_line(tmp_path, f"{server.base}/a.raw.gz") > 200


def test_a_disk_of_another_hypervisor(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "a.raw", size_mib=2)
    qemu_img("convert", "-f", "raw", "-O", "vmdk", raw, tmp_path / "a.vmdk")
    assert (tmp_path / "a.vmdk").stat().st_size < 2 * MIB
    assert killed_at_every_line(tmp_path, str(tmp_path / "a.vmdk"), "images", "image_conversion", "qemu_img") > 100
