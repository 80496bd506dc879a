"""A real guest reached as a person would: its log, its console at a terminal, its screen, and by ssh with the keys it reported."""

from __future__ import annotations

import contextlib
import os
import pty
import select
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
from tests.support.processes import VENV_BIN, as_a_child, wait_until

REQUEST = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:128"


class Terminal:
    """A program at a terminal of its own, inside the host, and what it has shown so far."""

    def __init__(self, deployment: Deployment, host: NamespacedHost, *arguments: str) -> None:
        leader, follower = pty.openpty()
        command = [VENV_BIN / "eschedule", "--config", deployment.schedule_file, *arguments]
        self.process = subprocess.Popen(
            host._inside(["setsid", "--ctty", "--wait", *command]), stdin=follower, stdout=follower, stderr=follower,
            env={**os.environ, "TERM": "xterm"}, preexec_fn=as_a_child,  # noqa: PLW1509 - tests only
        )  # fmt: skip
        os.close(follower)
        self._leader, self.shown = leader, b""

    def type(self, text: bytes) -> None:
        os.write(self._leader, text)

    def await_text(self, text: bytes, *, timeout_seconds: float = 60) -> None:
        def has() -> bool:
            while select.select([self._leader], [], [], 0.05)[0]:
                try:
                    self.shown += os.read(self._leader, 65536)
                except OSError:  # its end
                    break
            return text in self.shown

        wait_until(has, timeout_seconds=timeout_seconds, what=f"it shows {text!r}", evidence=lambda: repr(self.shown[-2000:]))

    def ended(self) -> int:
        def has_ended() -> bool:
            with contextlib.suppress(OSError):  # nobody is at the other side any more
                while select.select([self._leader], [], [], 0.1)[0]:
                    self.shown += os.read(self._leader, 65536)
            return self.process.poll() is not None

        wait_until(has_ended, timeout_seconds=60, what="it ends", evidence=lambda: repr(self.shown[-2000:]))
        return self.process.wait(1)

    def close(self) -> None:
        """Whatever is still there is hung up."""
        os.close(self._leader)
        self.process.kill()
        self.process.wait(10)


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
    following = Terminal(deployment, deployment_host, "log", "-f", "--tail", "1", "web")
    try:
        following.await_text(b"/ # ")  # the shell's prompt, the last that it said
        guest.say("printf 'from-inside\\033]0;evil\\007\\n' > /dev/ttyS0")
        following.await_text(b"from-inside")
        assert b"\x1b]0;evil" not in following.shown and b"\\x1b]0;evil\\x07" in following.shown
        following.type(b"\x03")
        assert following.ended() == 130 and b"interrupted" in following.shown, following.shown
    finally:
        following.close()

    # The console, at a terminal; what it says is logged as well.
    console = Terminal(deployment, deployment_host, "console", "web")
    try:
        console.await_text(b"Ctrl-] leaves it")
        until = time.monotonic() + 60
        while b"made-4321" not in console.shown and time.monotonic() < until:  # what is typed before virsh is up is lost
            console.type(b"\recho made-$((4000+321))\r")
            with contextlib.suppress(AssertionError):
                console.await_text(b"made-4321", timeout_seconds=3)
        assert b"made-4321" in console.shown, repr(console.shown)
        second = Terminal(deployment, deployment_host, "console", "web")
        try:
            assert second.ended() == 5 and b"somebody else has the console" in second.shown, second.shown
        finally:
            second.close()
        console.type(b"\x1d")
        assert console.ended() == 0 and b"left the console of web" in console.shown, repr(console.shown)
    finally:
        console.close()
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
    assert "5900" not in deployment_host.run(["ss", "-ltn"]).stdout, "no port listens for it"

    # ssh, by the key that it reported; and not where another one answers.
    assert deployment.show("web")["status"]["ready"]["host_keys"]
    ssh = ("ssh", "web", "--user", "root", "-i", str(key), "--")
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

    # A guest that is off has its log still, and nothing else.
    deployment.eschedule("stop", "web")
    assert "TINY-READY" in deployment.eschedule("log", "web").stdout
    off = deployment.eschedule("screenshot", "web", tmp_path / "off.png", check=False)
    assert (off.returncode, off.stderr.count("\n")) == (1, 1) and "Stopped" in off.stderr
