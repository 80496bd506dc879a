"""What may come next on a command line, and how little is imported to find that out."""

from __future__ import annotations

import subprocess
import sys

import pytest

from eschedule.arguments import parser_for
from eschedule.completion import FILES, complete, script
from tests.support.processes import ROOT

NAMES = {
    "instances": ["web-1", "web-2", "db"], "images": ["debian-12", "tiny"], "keys": ["alice"], "networks": ["lan"],
    "hosts": ["node1", "node2"], "labels": ["app", "app=web"], "zones": ["a", "b"],
}  # fmt: skip


def completed(*words: str) -> list[str]:
    return complete(words, parser_for, lambda kind: NAMES.get(kind, []))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sh"], ["show"]),
        (["show", ""], ["db", "web-1", "web-2"]),
        (["show", "w"], ["web-1", "web-2"]),
        (["show", "web-1", ""], []),
        (["destroy", "web-1", "w"], ["web-1", "web-2"]),
        (["--config", "x.yaml", "stop", "d"], ["db"]),
        (["list", "-o", "j"], ["json"]),
        (["list", "--output=y"], ["--output=yaml"]),
        (["list", "--j"], ["--json"]),
        (["host", "d"], ["disable"]),
        (["host", "disable", "node"], ["node1", "node2"]),
        (["host", "disable", "--reason", ""], []),
        (["host", "disable", "--reason", "new disks", "n"], ["node1", "node2"]),
        (["host", "trait", ""], ["add", "rm"]),
        (["host", "trait", "add", ""], ["node1", "node2"]),
        (["image", "show", ""], ["debian-12", "tiny"]),
        (["image", "add", ""], []),
        (["image", "create", "n", "--from", "w"], ["web-1", "web-2"]),
        (["resize", "w"], ["web-1", "web-2"]),
        (["resize", "web-1", "res"], ["resources="]),
        (["network", "rm", "l"], ["lan"]),
        (["key", "show", ""], ["alice"]),
        (["create", "resources=VCPU:1", "deb"], ["debian-12", FILES]),
        (["resources=VCPU:1", "deb"], ["debian-12", FILES]),
        (["resources=VCPU:1", "--image=t"], ["--image=tiny", FILES]),
        (["create", "--key", "a"], ["alice", FILES]),
        (["create", "--user-data", ""], [FILES]),
        (["create", "--restart", "o"], ["on-failure"]),
        (["completion", ""], ["bash", "fish", "zsh"]),
        (["stop", "-l", "app"], ["app", "app=web"]),
        (["label", "w"], ["web-1", "web-2"]),
        (["create", "--like", "d"], ["db"]),
        (["capacity", "--zone", ""], ["a", "b"]),
        (["create", "--host=node"], ["--host=node1", "--host=node2"]),
        (["apply", "-f", ""], [FILES]),
        (["edit", "d"], ["db"]),
        (["nonsense", ""], []),
    ],
)
def test_what_comes_next(words: list[str], expected: list[str]) -> None:
    assert completed(*words) == expected


def test_every_verb_comes_first() -> None:
    assert {"create", "list", "host", "capacity"} <= set(completed(""))
    assert all(not word.startswith("-") for word in completed(""))


def test_names_are_asked_for_only_where_they_can_come_next() -> None:
    complete(["list", "-o", ""], parser_for, lambda kind: pytest.fail(f"{kind} were asked for"))


def test_neither_help_nor_completion_imports_what_takes_long() -> None:
    heavy = ("grpc", "etcd3", "requests", "libvirt", "jsonschema", "common.placement")
    for words in (["--help"], ["create", "--help"], ["__complete", "show", ""], ["__complete", "l"], ["completion", "bash"]):
        program = (
            "import sys; from eschedule.main import main\n"
            f"try: main({words!r})\n"
            "except SystemExit: pass\n"
            f"sys.exit([m for m in {heavy!r} if m in sys.modules] or 0)"
        )
        answer = subprocess.run(
            [sys.executable, "-c", program], check=False, cwd=ROOT, capture_output=True, text=True, timeout=30
        )
        assert (answer.returncode, answer.stderr) == (0, ""), words


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_calls_the_program(shell: str) -> None:
    assert "__complete" in script(shell) and "eschedule" in script(shell)
