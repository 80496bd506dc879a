"""``ecompute doctor`` for tests: run inside a host or on this machine, its report read from the JSON that it prints."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.deployment import Machine
from tests.support.processes import VENV_BIN


@dataclass(frozen=True)
class Examination:
    """What one run of a doctor said."""

    exit_code: int
    results: tuple[dict[str, Any], ...]
    fixed: tuple[str, ...]
    printed: str

    @property
    def bad(self) -> list[dict[str, Any]]:
        return [result for result in self.results if result["level"] != "OK"]

    def has(self, name: str, level: str, *parts: str) -> dict[str, Any]:
        """The one result of that *name* and *level* that holds all *parts* and tells a cure."""
        for result in self.results:
            if (result["name"], result["level"]) == (name, level) and all(part in result["text"] for part in parts):
                assert result["cure"] or level == "OK", result
                return result
        raise AssertionError(f"no {level} of {name} with {parts}:\n{json.dumps(self.results, indent=1)}")


def changed_config(compute_file: Path, to: Path, changes: Mapping[str, Any]) -> Path:
    """The configuration *compute_file* with sections of *changes* merged over it, as the file *to*."""
    document = yaml.safe_load(compute_file.read_text()) or {}
    for key, value in changes.items():
        document[key] = {**document.get(key, {}), **value} if isinstance(value, Mapping) else value
    to.write_text(yaml.safe_dump(document))
    return to


def examine(machine: Machine, compute_file: Path, *arguments: str, before: Sequence[str | Path] = ()) -> Examination:
    """Run the doctor to its end.

    Args:
        before: what the command line begins with, as ``env NAME=VALUE``.
    """
    command = [*before, VENV_BIN / "ecompute", "--config", compute_file, "doctor", "--json", *arguments]
    return read(machine.run(command, timeout_seconds=60, check=False))


def read(answer: subprocess.CompletedProcess[str]) -> Examination:
    """What the run that ended as *answer* said; nothing may be on standard error."""
    assert answer.stderr == "", answer.stderr
    document = json.loads(answer.stdout)
    return Examination(answer.returncode, tuple(document["results"]), tuple(document["fixed"]), answer.stdout)
