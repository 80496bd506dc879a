"""The verbs that have guests stand still, keep them and call them otherwise: the real programs over libvirt's simulation."""

from __future__ import annotations

import os
import pty
import select
import subprocess
from pathlib import Path

import pytest

from tests.support.deployment import Deployment, make_raw_image
from tests.support.processes import VENV_BIN

REQUEST = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:64"


def refused(deployment: Deployment, *words: str, code: int = 5) -> str:
    """The one line with which *words* were refused."""
    answer = deployment.eschedule(*words, check=False)
    lines = [line for line in answer.stderr.splitlines() if line.startswith("eschedule:")]
    assert (answer.returncode, answer.stdout, len(lines)) == (code, "", 1), answer.stderr
    return lines[0]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_raw_image(tmp_path / "image.raw")


def test_one_life_of_standing_still(local_deployment: Deployment, image: Path) -> None:
    deployment = local_deployment
    deployment.eschedule(REQUEST, image, "--name", "web")
    deployment.eschedule("volume", "create", "data", "--size", "1")
    assert "web (" in deployment.eschedule("pause", "web").stderr
    assert deployment.phase("web") == "Paused"
    deployment.eschedule("pause", "web")
    assert "web is paused; use: eschedule unpause web" in refused(deployment, "resume", "web")
    assert "paused, and hears nothing; first: eschedule unpause web" in refused(deployment, "exec", "web", "true", code=125)
    deployment.eschedule("start", "web")
    assert deployment.phase("web") == "Running"

    deployment.eschedule("suspend", "web")
    shown = deployment.show("web")
    assert (shown["phase"], shown["spec"]["desired"], shown["spec"]["schema"]) == ("Suspended", "suspended", 5)
    for words, said in (
        (("pause", "web"), "web is suspended, and stands still already; see: eschedule resume web"),
        (("unpause", "web"), "web is suspended; use: eschedule resume web"),
        (("resize", "web", "--vcpus", "2"), "resize it when it runs: eschedule resume web"),
        (("volume", "attach", "data", "web"), "attach data when it runs: eschedule resume web"),
    ):
        assert said in refused(deployment, *words)
    assert "web is suspended; first: eschedule resume web" in refused(deployment, "ssh", "web", code=1)
    deployment.eschedule("resume", "web")
    assert deployment.phase("web") == "Running"
    deployment.eschedule("suspend", "web")
    deployment.eschedule("stop", "web")
    assert deployment.phase("web") == "Stopped"
    assert "web is down, and cannot be paused; start it first: eschedule start web" in refused(deployment, "pause", "web")
    assert "web is stopped; use: eschedule start web" in refused(deployment, "resume", "web")
    deployment.eschedule("volume", "rm", "data")


def test_a_protected_one_under_another_name(local_deployment: Deployment, image: Path) -> None:
    deployment = local_deployment
    for name in ("web", "db"):
        deployment.eschedule(REQUEST, image, "--name", name)
    said = deployment.eschedule("rename", "web", "shop").stderr
    assert "is shop now; the guest still calls itself web" in said
    assert "the name db belongs to the instance" in refused(deployment, "rename", "shop", "db")
    assert "no instance web" in refused(deployment, "show", "web", code=1)
    deployment.eschedule("rename", "shop", "shop")
    shown = deployment.show("shop")
    assert (shown["name"], shown["spec"]["name"], shown["spec"]["hostname"]) == ("shop", "shop", "web")
    deployment.eschedule(REQUEST, image, "--name", "web")  # the name is free

    deployment.eschedule("protect", "shop", "db")
    for words in (("destroy", "shop"), ("rebuild", "shop")):
        assert "shop is protected, and not" in refused(deployment, *words)
    answer = deployment.eschedule("destroy", "shop", "web", check=False)
    assert answer.returncode == 5 and "web (" in answer.stderr, "the others go"
    assert [line.split()[0] for line in deployment.eschedule("ls").stdout.splitlines()[1:]] == ["db", "shop"]
    assert deployment.eschedule("list", "-o", "custom-columns=N:.name,P:.protected").stdout.split()[2:] == [
        "db",
        "true",
        "shop",
        "true",
    ]
    deployment.eschedule("unprotect", "shop", "db")
    assert asked_on_a_terminal(deployment, "n", "destroy", "shop", "db") == (1, "nothing was changed")
    assert asked_on_a_terminal(deployment, "", "rebuild", "shop") == (1, "nothing was changed")
    assert deployment.phase("shop") == deployment.phase("db") == "Running"
    assert asked_on_a_terminal(deployment, "y", "destroy", "shop")[0] == 0
    deployment.eschedule("destroy", "db", "--yes")
    deployment.assert_nothing_is_left()


def asked_on_a_terminal(deployment: Deployment, answer: str, *words: str) -> tuple[int, str]:
    """The exit code of a run at a terminal whose question is answered so, and what it said last."""
    ours, theirs = pty.openpty()
    command = [VENV_BIN / "eschedule", "--config", deployment.schedule_file, *words]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.DEVNULL, stderr=theirs) as process:
        os.close(theirs)
        said = b""
        while b"[y/N]" not in said:
            assert select.select([ours], [], [], 60)[0], said
            said += os.read(ours, 4096)
        assert all(word in said.decode() for word in words[1:]), said
        os.write(ours, f"{answer}\n".encode())
        try:
            while select.select([ours], [], [], 120)[0] and (more := os.read(ours, 4096)):
                said += more
        except OSError:  # the other end is closed
            pass
        code = process.wait(60)
    os.close(ours)
    return code, said.decode().strip().splitlines()[-1].removeprefix("eschedule: ")
