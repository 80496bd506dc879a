"""Each verb has its function, found without importing what the others need."""

from __future__ import annotations

import subprocess
import sys

import pytest

from common.errors import Conflict, NoCapacity, Permanent, Transient
from eschedule.arguments import parse
from eschedule.verbs import PLACES, command_of, exit_code
from tests.support.processes import ROOT


@pytest.mark.parametrize("verb", PLACES)
def test_each_verb_has_a_function_and_a_parser(verb):
    assert callable(command_of(verb))
    with pytest.raises(SystemExit):
        parse([verb, "--help"])


def test_list_imports_nothing_of_what_other_verbs_and_placement_need():
    heavy = ("requests", "jsonschema", "os_resource_classes", "eschedule.follow", "eschedule.audit", "eschedule.scheduler")
    program = (
        "import sys; from pathlib import Path; from common.config import load_schedule; from eschedule.verbs import command_of\n"
        "load_schedule(Path('schedule.yaml')); command_of('list'); import common.etcd_store\n"
        f"sys.exit([m for m in {heavy!r} if m in sys.modules] or 0)"
    )
    answer = subprocess.run([sys.executable, "-c", program], check=False, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert (answer.returncode, answer.stderr) == (0, "")


@pytest.mark.parametrize(
    ("error", "code"), [(Conflict("x"), 5), (NoCapacity("x"), 3), (Transient("x"), 4), (Permanent("x", "Reason"), 1)]
)
def test_what_should_be_done_about_an_error_is_in_the_exit_code(error, code):
    assert exit_code(error) == code
