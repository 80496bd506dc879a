"""The manual has a page for every program and verb, with every option that its command line knows."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from eschedule.arguments import parser_for
from tests.support.processes import ROOT


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("manual")
    command = [sys.executable, ROOT / "packaging/manpages.py", directory]
    subprocess.run(command, check=True, cwd=ROOT, env={"SOURCE_DATE_EPOCH": "86400", "PYTHONPATH": str(ROOT)}, timeout=60)
    return {path.name: path.read_text() for path in directory.glob("man?/*")}


def parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (verbs,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(verbs.choices)


def test_every_verb_has_a_page_with_all_its_options_and_an_example(pages: dict[str, str]) -> None:
    for verb, parser in parsers(parser_for(None)).items():
        page = pages[f"eschedule-{verb}.1"]
        assert f"\n.SH NAME\neschedule\\-{verb.replace('-', chr(92) + '-')} \\- " in page
        assert "\n.SH EXAMPLE" in page, verb
        for option in (text for action in parser._actions for text in action.option_strings):
            assert option.replace("-", "\\-") in page, (verb, option)


def test_the_programs_have_pages_and_nothing_is_taken_for_a_request(pages: dict[str, str]) -> None:
    assert {"eschedule.1", "ecompute.8", "md-server.8"} < pages.keys()
    assert ".SH EXIT STATUS\n" in pages["eschedule.1"] and '"1970-01-02"' in pages["ecompute.8"]
    known = (".TH ", ".SH ", ".SS ", ".PP", ".TP", ".nf", ".fi")
    for name, page in pages.items():
        wrong = [line for line in page.splitlines() if line.startswith((".", "'")) and not line.startswith(known)]
        assert not wrong, name
