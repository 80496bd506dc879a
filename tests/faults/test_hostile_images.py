"""Images that were damaged or made up, hundreds of them: taken or refused, never a crash, a hang, or more memory than there is for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT

COUNT = 400


@pytest.mark.parametrize("seed", ["one", "two"])
def test_every_image_is_taken_or_refused(seed: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.hostile_images", str(tmp_path), seed, str(COUNT)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert answer.returncode == 0, answer.stderr[-4000:]
    found = json.loads(answer.stdout)
    assert sum(found.values()) == COUNT
    assert found["ImageInvalid"] > COUNT / 5, found
    assert found["taken"] > COUNT / 20, f"so badly damaged that nobody looks far into them: {found}"
