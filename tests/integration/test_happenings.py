"""``eschedule events``, ``wait`` and ``top``, and the journal, over real etcd, Placement and ecompute."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import termios
import threading
from pathlib import Path
from typing import Any

from tests.support.deployment import Deployment, local_deployment, make_raw_image  # noqa: F401 - a fixture
from tests.support.processes import VENV_BIN, as_a_child, wait_until

REQUEST = "resources=VCPU:1,MEMORY_MB:64,DISK_GB:1"


def events(deployment: Deployment, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(deployment.eschedule("events", *arguments, "-o", "json").stdout)
    return found


def names(found: list[dict[str, Any]]) -> list[str]:
    return [one["event"] for one in found]


def refused(deployment: Deployment, *arguments: str) -> tuple[int, str]:
    """The exit code and the one line that was said, beside progress; nothing is printed as data."""
    answer = deployment.eschedule(*arguments, check=False)
    said = [line for line in answer.stderr.splitlines() if line.startswith("eschedule: ")]
    assert answer.stdout == "" and len(said) == 1, answer.stderr
    return answer.returncode, said[0]


class Following:
    """``eschedule events -f`` while it runs."""

    def __init__(self, deployment: Deployment, directory: Path, *arguments: str) -> None:
        self.log = directory / f"follow{len(list(directory.glob('follow*')))}"
        self.process = deployment.spawn_eschedule("events", "-f", "-o", "json", *arguments, log=self.log)

    def seen(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def wait_for(self, event: str, **fields: str) -> dict[str, Any]:
        def found() -> list[dict[str, Any]]:
            return [one for one in self.seen() if one["event"] == event and fields.items() <= one.items()]

        wait_until(lambda: bool(found()), timeout_seconds=60, what=f"{event} {fields}", evidence=self.log.read_text)
        return found()[-1]

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        wait_until(lambda: self.process.poll() is not None, timeout_seconds=30, what="it ends")
        code = self.process.poll()
        assert code is not None
        return code


def test_what_happens_is_told_with_who_and_why(local_deployment: Deployment, tmp_path: Path) -> None:  # noqa: F811
    """One deployment for all: to start it takes longer than everything here."""
    deployment, image = local_deployment, make_raw_image(tmp_path / "image.raw")
    following = Following(deployment, tmp_path)
    following.wait_for("ready", of="host")

    deployment.eschedule(REQUEST, image, "--name", "web", "--restart", "on-failure", "--reason", "a shop")
    assert following.wait_for("create", name="web")["reason"] == "a shop"
    assert following.wait_for("built", name="web")["host"]["name"] == "testhost"
    uuid = deployment.show("web")["uuid"]

    deployment.eschedule("set", "web", "--metadata-hop-limit", "2", "--no-wait")
    deployment.eschedule("stop", "web", "--reason", "nobody buys")
    deployment.eschedule("start", "web")
    found = events(deployment, "web")
    assert names(found) == ["create", "built", "set", "stop", "stopped", "start", "started"]
    assert found[3]["reason"] == "nobody buys" and "@" in found[3]["by"] and found[2]["message"] == "metadata hop limit"
    assert {one["uuid"] for one in found} == {uuid} and found[0]["host"] == found[1]["host"]
    assert names(events(deployment, uuid, "--limit", "2")) == ["start", "started"]

    crash_and_come_back(deployment, uuid)
    hosts_and_waiting(deployment, following)
    usage(deployment, uuid)
    bad_input(deployment)

    deployment.eschedule("destroy", "web", "--reason", "closed")
    following.wait_for("destroyed", name="web")
    assert names(events(deployment, "web"))[-2:] == ["destroy", "destroyed"], "known by the name that it had"
    assert events(deployment, uuid) == events(deployment, "web")
    table = deployment.eschedule("events", "--since", "1h", "--limit", "3").stdout.splitlines()
    assert table[0].split()[:3] == ["TIME", "(UTC)", "EVENT"] and len(table) == 4
    assert "reason: closed" in "".join(table)
    assert deployment.instance_keys() == []

    deployment.stop_ecompute()
    following.wait_for("stopped", of="host")
    following.wait_for("away", of="host")
    assert following.interrupt() == 130
    assert not [line for line in following.log.read_text().splitlines() if line and not line.startswith(("{", "eschedule: "))]


def crash_and_come_back(deployment: Deployment, uuid: str) -> None:
    """ecompute dies, and with it its simulated libvirt, so that the guest is gone when it looks again."""
    deployment.kill_ecompute()
    deployment.start_ecompute()
    wait_until(
        lambda: "after an end without a word" in [one["message"] for one in events(deployment, "--host", "testhost")],
        timeout_seconds=60, what="the host tells of its own end", evidence=deployment.evidence,
    )  # fmt: skip
    deployment.wait_ready()
    wait_until(
        lambda: names(events(deployment, uuid))[-1] == "powered off", timeout_seconds=60, what="its end is told of",
        evidence=lambda: str(events(deployment, uuid)),
    )  # fmt: skip
    deployment.eschedule("start", "web")


def hosts_and_waiting(deployment: Deployment, following: Following) -> None:
    """What is set for a host is told of it, and ``wait`` waits for what others do."""
    deployment.eschedule("host", "disable", "testhost", "--reason", "new disks")
    deployment.eschedule("host", "enable", "testhost")
    deployment.eschedule("host", "label", "testhost", "rack=7", "--reason", "moved")
    said = [(one["event"], one["reason"], one["message"]) for one in events(deployment, "--host", "testhost") if one["by"]]
    assert said[-3:] == [("host disable", "new disks", ""), ("host enable", "", ""), ("host label", "moved", "rack=7")]

    assert "web is healthy" in deployment.eschedule("wait", "web", "--for", "healthy").stderr
    code, line = refused(deployment, "wait", "web", "--for", "stopped", "--timeout", "0.3s")
    assert code == 4 and "web is not stopped after 0.3 s" in line
    waiting = deployment.spawn_eschedule("wait", "web", "--for", "stopped", log=following.log.with_name("waiting"))
    deployment.eschedule("stop", "web", "--no-wait")
    wait_until(lambda: waiting.poll() is not None, timeout_seconds=60, what="wait hears of it")
    assert waiting.poll() == 0
    deployment.eschedule("start", "web")
    assert deployment.eschedule("wait", "nobody", "--for", "gone").returncode == 0


def usage(deployment: Deployment, uuid: str) -> None:
    shown = json.loads(deployment.eschedule("top", "-o", "json").stdout)
    assert [(one["uuid"], one["name"], one["vcpus"]) for one in shown] == [(uuid, "web", 1)]
    assert (
        shown[0]["cpu_percent"] > 0 and shown[0]["memory_bytes"] == 64 << 20 and shown[0]["disk_read_bytes_per_second"] is None
    )
    table = deployment.eschedule("top", "--once", "--sort", "memory").stdout.splitlines()
    assert table[0].split()[:3] == ["NAME", "HOST", "CPU%"] and table[1].split()[:2] == ["web", "testhost"] and len(table) == 2
    on_a_terminal(deployment)
    wide = deployment.eschedule("hosts", "-o", "wide").stdout.splitlines()
    latency = wide[1][wide[0].index("LATENCY") :].split()
    assert float(latency[0]) > 0 and latency[1] == "ms"


class Terminal:
    """A program at a terminal of 80 columns and 10 lines, and somebody who types there."""

    def __init__(self, deployment: Deployment, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 10, 80, 0, 0))
        self.before = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            [VENV_BIN / "eschedule", "--config", str(deployment.schedule_file), *arguments], stdin=slave, stdout=slave, stderr=slave,
            env={**os.environ, "TERM": "xterm"}, **{"preexec_fn": as_a_child},
        )  # fmt: skip
        self.slave, self.text = slave, ""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(self._master, 4096):
                self.text += data.decode()

    def wait_for(self, *parts: str) -> None:
        wait_until(
            lambda: all(part in self.text for part in parts),
            timeout_seconds=60,
            what=f"{parts}",
            evidence=lambda: repr(self.text),
        )

    def types(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def ends(self) -> int:
        """The exit code; the terminal is as it was."""
        code = self.process.wait(60)
        self.wait_for("\x1b[?1049l")
        assert termios.tcgetattr(self.slave) == self.before
        return code


def on_a_terminal(deployment: Deployment) -> None:
    watched = Terminal(deployment, "top")
    watched.wait_for("\x1b[?1049h", "1 guest on 1 host; by cpu", "web ")
    watched.types("m")
    watched.wait_for("; by memory")
    watched.types("q")
    assert watched.ends() == 0
    interrupted = Terminal(deployment, "top", "--sort", "net")
    interrupted.wait_for("; by net")
    interrupted.process.send_signal(signal.SIGINT)
    assert interrupted.ends() == 130


def bad_input(deployment: Deployment) -> None:
    for arguments, said in (
        (("events", "nobody"), "there is no instance nobody"),
        (("events", "--host", "nohost"), "there is no host"),
        (("wait", "nobody"), "there is no instance nobody"),
        (("top", "--host", "nohost"), "there is no host"),
    ):
        assert (answer := refused(deployment, *arguments))[0] == 1 and said in answer[1], (arguments, answer)
    before = names(events(deployment, "web"))
    assert before[-1] == "started", "nothing of it was done"
    closed = subprocess.run(
        ["bash", "-c", "set -o pipefail; $0 --config $1 events | head -c 1 >/dev/null", "eschedule", str(deployment.schedule_file)],
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert closed.stderr == b"" or b"not found" in closed.stderr
