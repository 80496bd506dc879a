"""A real guest reached as a person would, at terminals under tmux: log, console, screen, top, ssh, and its end."""

from __future__ import annotations

import contextlib
import json
import re
import struct
import subprocess
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.deployment import Deployment, deployment_inside
from tests.support.guests import Guest, make_key
from tests.support.hosts import NamespacedHost
from tests.support.processes import VENV_BIN, wait_until
from tests.support.tmux import Terminal

REQUEST = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:128"


def at_terminal(deployment: Deployment, host: NamespacedHost, *arguments: str, columns: int = 120) -> Terminal:
    return Terminal(host, [VENV_BIN / "eschedule", "--config", deployment.schedule_file, *arguments], columns=columns)


@pytest.fixture
def deployment(deployment_host: NamespacedHost, tmp_path: Path) -> Iterator[Deployment]:
    libvirt = {"uri": "qemu:///system", "virt_type": "qemu", "graphics": "vnc"}
    with deployment_inside(deployment_host, tmp_path, libvirt=libvirt) as made:
        yield made


def size_of(png: bytes) -> tuple[int, int]:
    """Width and height of a PNG that is whole: every part has its check sum."""
    at, kinds = 8, []
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", png, at + 8 + length)[0] == zlib.crc32(kind + data)
        kinds.append(kind)
        at += 12 + length
    assert kinds[0] == b"IHDR" and kinds[-1] == b"IEND"
    width, height = struct.unpack_from(">II", png, 16)
    return width, height


def test_a_guest_is_reached_by_each_of_its_ways(
    deployment: Deployment, deployment_host: NamespacedHost, tiny_image: Path, tmp_path: Path
) -> None:
    key = make_key(tmp_path)
    deployment.eschedule(REQUEST, tiny_image, "--name", "web", "--key", f"{key}.pub", "--wait", "ready")
    guest = Guest(deployment_host, deployment, "web", key)

    # The log: whole, its end, and as it grows.
    log = deployment.eschedule("log", "web").stdout
    assert "TINY-READY" in log, guest.evidence()
    assert deployment.eschedule("log", "web", "--tail", "1").stdout in log[-4000:]
    with at_terminal(deployment, deployment_host, "log", "-f", "--tail", "1", "web") as following:
        following.await_text("/ # ")  # the shell's prompt, the last that it said
        guest.say("printf 'from-inside\\033]0;evil\\007\\n' > /dev/ttyS0")
        following.await_text("from-inside")
        assert r"\x1b]0;evil\x07" in following.shown and following.title != "evil"
        following.press("C-c")
        assert following.ended() == 130 and "interrupted" in following.shown, following.shown

    # The console, at a terminal; what it says is logged as well.
    with at_terminal(deployment, deployment_host, "console", "web") as console:
        console.await_text("Ctrl-] leaves it")
        until = time.monotonic() + 60
        while "made-4321" not in console.shown and time.monotonic() < until:  # what is typed before virsh is up is lost
            console.press("Enter")
            console.type("echo made-$((4000+321))")
            console.press("Enter")
            with contextlib.suppress(AssertionError):
                console.await_text("made-4321", timeout_seconds=3)
        assert "made-4321" in console.shown, console.shown
        with at_terminal(deployment, deployment_host, "console", "web") as second:
            assert second.ended() == 5 and "somebody else has the console" in second.shown, second.shown
        console.press("C-]")
        assert console.ended() == 0 and "left the console of web" in console.shown, console.shown
    assert "made-4321" in deployment.eschedule("log", "web").stdout

    # The screen.
    picture = tmp_path / "web.png"
    deployment.eschedule("screenshot", "web", picture)
    width, height = size_of(picture.read_bytes())
    assert width >= 640 and height >= 400
    shown = dict(line.split(maxsplit=1) for line in deployment.eschedule("vnc", "web").stdout.splitlines())
    socket = shown["socket"].split(" on ")[0]
    greeting = deployment_host.run(
        ["python3", "-c", f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({socket!r}); print(s.recv(12))"]
    ).stdout
    assert "RFB 003" in greeting
    assert not re.search(r":59\d\d\s", deployment_host.run(["ss", "-ltn"]).stdout), "no port listens for it"

    # What it uses, while it has something to do, at the terminal's own Ctrl-C.
    guest.ssh("dd if=/dev/zero of=/dev/null </dev/null >/dev/null 2>&1 &")
    used = json.loads(deployment.eschedule("top", "--once", "-o", "json").stdout)
    assert [(one["name"], one["vcpus"]) for one in used] == [("web", 1)]
    assert used[0]["cpu_percent"] > 1 and used[0]["memory_bytes"] > 1 << 20 and used[0]["net_sent_bytes_per_second"] is not None
    with at_terminal(deployment, deployment_host, "top") as watching:
        watching.await_text("1 guest on 1 host; by cpu")
        watching.await_text("web ")
        watching.press("C-c")
        assert watching.ended() == 130 and "by cpu" not in watching.shown, "what was there before is there again"

    # Tables fit the terminal, and a wide one has all of them.
    for columns in (80, 200):
        with at_terminal(deployment, deployment_host, "list", columns=columns) as listing:
            listing.await_text("web ")
            assert listing.ended() == 0
            head, row, *rest = listing.screen
            assert head.split()[:4] == ["NAME", "UUID", "HOST", "PHASE"] and row.startswith("web ") and not any(rest)
            assert ("…" in row) == (columns == 80), row

    # ssh, by the key that it reported; and not where another one answers.
    assert deployment.show("web")["status"]["ready"]["host_keys"]
    ssh = ("ssh", "web", "--user", "root", "-i", str(key), "--")
    with at_terminal(deployment, deployment_host, "ssh", "web", "--user", "root", "-i", str(key)) as shell:
        shell.await_text("# ")
        shell.type("stty size; exit 6")
        shell.press("Enter")
        assert shell.ended() == 6 and "40 120" in shell.shown, shell.shown
    told = deployment.eschedule(*ssh, "hostname; exit 7", check=False)
    assert (told.returncode, told.stdout.strip()) == (7, "web"), told.stderr + guest.evidence()
    guest.ssh(
        "rm -f /tmp/other; dropbearkey -t ed25519 -f /tmp/other; (killall dropbear; sleep 1; dropbear -r /tmp/other -s) "
        "</dev/null >/dev/null 2>&1 &"
    )
    answers: list[subprocess.CompletedProcess[str]] = []

    def is_refused() -> bool:  # the first key answers for a moment still, then nobody does
        answers.append(deployment.eschedule(*ssh, "true", check=False))
        return "key verification failed" in answers[-1].stderr

    wait_until(is_refused, timeout_seconds=60, what="another key answers", evidence=lambda: f"{answers[-1]} {guest.evidence()}")
    assert answers[-1].returncode == 255

    # A guest that is off has its log still, and nothing else; what became of it is known.
    deployment.eschedule("stop", "web", "--reason", "enough")
    said = [one["event"] for one in json.loads(deployment.eschedule("events", "web", "-o", "json").stdout)]
    assert said == ["create", "built", "ready", "stop", "stopped"], said
    assert "TINY-READY" in deployment.eschedule("log", "web").stdout
    off = deployment.eschedule("screenshot", "web", tmp_path / "off.png", check=False)
    assert (off.returncode, off.stderr.count("\n")) == (1, 1) and "Stopped" in off.stderr

    # It is asked about before it goes for good.
    with at_terminal(deployment, deployment_host, "destroy", "web") as asking:
        asking.await_text("web")
        asking.type("n")
        asking.press("Enter")
        assert asking.ended() != 0
    assert deployment.eschedule("list", "-o", "name").stdout == "web\n"
    with at_terminal(deployment, deployment_host, "destroy", "web") as asking:
        asking.await_text("web")
        asking.type("y")
        asking.press("Enter")
        assert asking.ended() == 0
    assert deployment.eschedule("list", "-o", "name").stdout == ""
