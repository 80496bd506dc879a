"""``eschedule log``, ``screenshot``, ``vnc``, ``exec``, ``console`` and ``ssh`` over real etcd, Placement and ecompute."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from common.keys import Keys
from eschedule.closed_pipe import EXIT_CLOSED_PIPE
from tests.support.deployment import Deployment, local_deployment, make_raw_image  # noqa: F401 - a fixture
from tests.support.eschedule import IMAGE, QUERY, Site
from tests.support.processes import VENV_BIN, wait_until

REQUEST = "resources=VCPU:1,MEMORY_MB:64,DISK_GB:1"


class Guest:
    """An instance of a deployment whose serial log the test writes, as libvirt's simulation has none."""

    def __init__(self, deployment: Deployment, image: Path) -> None:
        self.deployment = deployment
        deployment.eschedule("create", REQUEST, image, "--name", "web")
        self.log = Path(deployment.state_dir) / "instances" / deployment.show("web")["uuid"] / "console.log"

    def run(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = [VENV_BIN / "eschedule", "--config", self.deployment.schedule_file, *arguments]
        return subprocess.run(command, capture_output=True, timeout=120, check=False, stdin=subprocess.DEVNULL)

    def letters(self) -> list[str]:
        return [key for key in self.deployment.etcd_keys() if "/mail" in key]


@pytest.fixture
def guest(local_deployment: Deployment, tmp_path: Path) -> Guest:  # noqa: F811
    return Guest(local_deployment, make_raw_image(tmp_path / "disk.raw"))


def test_a_guest_is_reached_by_letters(guest: Guest, tmp_path: Path) -> None:
    """One deployment for all: to start it takes longer than everything here."""
    deployment = guest.deployment
    none = guest.run("log", "web")
    assert none.returncode == 1 and b"no log of web on testhost" in none.stderr and none.stderr.count(b"\n") == 1

    # Longer than a letter, and rotated; every byte comes through a pipe as it is.
    log = bytes(range(256)) * 2000 + b"\nlast line\n"
    guest.log.with_name("console.log.0").write_bytes(log[:300_000])
    guest.log.write_bytes(log[300_000:])
    assert guest.run("log", "web").stdout == log
    assert guest.run("log", "web", "--tail", "1").stdout == b"last line\n"
    assert guest.run("log", "web", "--tail", "0").stdout == b""
    closed = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {VENV_BIN}/eschedule --config {deployment.schedule_file} log web | head -c 1 >/dev/null"],
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert (closed.returncode, closed.stderr) == (141, b"")

    follow(guest)

    # The simulation has one picture for all guests, and no agent.
    picture = tmp_path / "web.png"
    taken = guest.run("screenshot", "web", str(picture))
    assert taken.returncode == 0 and picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_mode & 0o777 == 0o600
    assert guest.run("screenshot", "web", "-").stdout == picture.read_bytes()
    vnc = guest.run("vnc", "web")
    assert vnc.returncode == 1 and b"libvirt.graphics" in vnc.stderr
    command = guest.run("exec", "web", "--", "true")
    assert command.returncode == 125 and b"no agent" in command.stderr and command.stderr.count(b"\n") == 1
    console = guest.run("console", "web")
    assert console.returncode == 2 and b"needs a terminal" in console.stderr
    assert guest.letters() == [], "nothing stays in etcd"

    # What is off has its log; a host that died answers nothing, and that is said at once.
    deployment.eschedule("stop", "web")
    assert guest.run("log", "web").stdout.endswith(b"growing\n")
    for verb in (("screenshot", "web", str(picture)), ("vnc", "web"), ("ssh", "web")):
        off = guest.run(*verb)
        assert off.returncode == 1 and b"web does not run: it is Stopped" in off.stderr, off.stderr
    assert guest.run("exec", "web", "--", "true").returncode == 125
    deployment.stop_ecompute()
    dead = guest.run("log", "web")
    assert dead.returncode == 4 and b"no heartbeat" in dead.stderr
    deployment.kill_etcd()
    away = guest.run("log", "web")
    assert away.returncode == 4 and b"etcd" in away.stderr


def follow(guest: Guest) -> None:
    """``-f`` prints what is added, over a rotation, while others are answered; a host that is asked in vain is asked seldom."""
    output = guest.deployment.directory / "followed"
    command = [VENV_BIN / "eschedule", "--config", guest.deployment.schedule_file, "log", "-f", "web", "--tail", "1"]
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    try:
        wait_until(lambda: output.read_bytes() == b"last line\n", timeout_seconds=30, what="it begins with the last line")
        with guest.log.open("ab") as log:
            log.write(b"more\n")
        wait_until(lambda: output.read_bytes().endswith(b"more\n"), timeout_seconds=15, what="it goes on")
        assert guest.run("audit").returncode in (0, 1), "the mailbox is not held up"
        guest.log.rename(guest.log.with_name("console.log.0"))
        guest.log.write_bytes(b"growing\n")
        wait_until(lambda: output.read_bytes() == b"last line\nmore\ngrowing\n", timeout_seconds=15, what="over a rotation")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr is not None and process.stderr.read() == b"eschedule: interrupted\n"
    finally:
        process.kill()
        process.wait()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL) as unread:
        assert unread.stdout is not None and unread.stdout.readline() == b"growing\n"
        unread.stdout.close()
        assert unread.wait(60) == EXIT_CLOSED_PIPE, "the guest says nothing more, and nobody would read it"


# -- with hosts that do not answer -----------------------------------------------------------------------------------------


def test_what_cannot_be_is_said_in_one_line(site: Site) -> None:
    site.host("node1")
    site.run("create", QUERY, IMAGE, "--name", "web")
    for arguments, code, said in (
        (("log", "wbe"), 1, "no instance wbe"),
        (("log", "web", "--tail", "many"), 2, "--tail"),
        (("log", "Web!"), 2, "instance name"),
        (("screenshot", "web", "/nowhere/web.png"), 2, "folder that is not there"),
        (("console", "web", "--uri", "nonsense"), 2, ""),
        (("ssh", "web", "--user", "-x"), 2, ""),
        (("ssh", "web", "--jump", "a b"), 2, "--jump"),
        (("ssh", "web", "-i", "/nowhere"), 2, "-i"),
        (("exec", "web"), 2, "COMMAND"),
        (("exec", "web", "--timeout-seconds", "soon", "--", "true"), 2, "--timeout-seconds"),
        (("exec", "wbe", "--", "true"), 125, "no instance wbe"),
        (("vnc", "wbe"), 1, "no instance wbe"),
    ):
        answer = site.run(*arguments)
        assert (answer.returncode, answer.stderr.count("\n")) == (code, 1), (arguments, answer.stderr)
        assert said in answer.stderr, (arguments, answer.stderr)


def test_a_host_of_an_earlier_version_answers_nothing_and_that_is_said(site: Site) -> None:
    site.host("node1")  # it reads no letters
    site.run("create", QUERY, IMAGE, "--name", "web")
    silent = site.run("log", "web")
    assert silent.returncode == 4 and "knows no letters of the kind log" in silent.stderr and silent.stderr.count("\n") == 1
    assert not site.store.list(f"{Keys(site.prefix).prefix}mail").items


def test_who_is_interrupted_while_a_host_is_asked_takes_the_letter_back(site: Site) -> None:
    host = site.host("node1")
    site.run("create", QUERY, IMAGE, "--name", "web")
    process = site.spawn("log", "-f", "web")
    wait_until(lambda: site.store.list(site.keys.mails(host.provider)).items, timeout_seconds=30, what="it asks")
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert (process.returncode, errors) == (130, "eschedule: interrupted\n")
    assert not site.store.list(site.keys.mails(host.provider)).items, "it takes its letter back"
