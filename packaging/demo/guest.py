"""The guest of the demo: asked for with eschedule, logged into by ssh, and what each part of that took."""

from __future__ import annotations

import datetime
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import services
from demo.programs import POLL_SECONDS, last_words, run, tail
from demo.settings import BIN, REQUEST, DemoError, Settings

SSH_SECONDS = 120
# What the guest is asked once we are in; a line each.
QUESTIONS = {
    "uptime": "cut -d' ' -f1 /proc/uptime",
    "uuid": "cat /run/metadata/instance-id; echo",
    "hostname": "hostname",
    "address": "ip -4 -o address show eth0 | awk '{ print $4 }'",
    "root disk": "df -h / | tail -n 1 | awk '{ print $2, $4 }'",
    "kernel": "uname -sr",
}


@dataclass(frozen=True)
class Guest:
    """A guest that runs and lets us in.

    Args:
        answers: to QUESTIONS.
        asked_at, logged_in_at, kernel_at: seconds since the epoch.
        request_ms: how long the parts of the request took, as eschedule measured them.
        instance: all that eschedule knows of it.
    """

    name: str
    address: str
    answers: Mapping[str, str]
    asked_at: float
    logged_in_at: float
    kernel_at: float
    request_ms: Mapping[str, float]
    instance: Mapping[str, Any]


def make_ssh_key(settings: Settings) -> None:
    """A key pair for this demo; an existing one is kept, as guests know it."""
    key = settings.ssh_key
    if key.exists():
        return
    partial = key.with_name("ssh_key.partial")
    for left_over in (partial, partial.with_name(partial.name + ".pub")):
        left_over.unlink(missing_ok=True)
    answer = run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "etcd-compute-demo", "-f", partial])
    if answer.returncode:
        raise DemoError(f"ssh-keygen made no key: {last_words(answer)}")
    partial.with_name(partial.name + ".pub").replace(key.with_name(key.name + ".pub"))
    partial.replace(key)


def keep_image(settings: Settings, built: Path) -> None:
    """Put the image that was *built* into the state directory, unless it is there."""
    image = settings.image
    if image.exists() and (image.stat().st_size, image.stat().st_mtime_ns) == (built.stat().st_size, built.stat().st_mtime_ns):
        return
    partial = image.with_name(image.name + ".partial")
    shutil.copy2(built, partial)
    partial.replace(image)


def eschedule(settings: Settings) -> list[str]:
    """The command to begin with."""
    return [str(BIN / "eschedule"), "--config", str(settings.schedule_yaml)]


def next_name(taken: list[str]) -> str:
    numbers = range(1, len(taken) + 2)
    return next(f"demo-{number}" for number in numbers if f"demo-{number}" not in taken)


def create(settings: Settings, log: Path) -> Guest:
    """Ask for a guest as a user would, with the progress on the terminal, and log into it.

    Raises:
        DemoError: there was none; eschedule has said why.
    """
    name = next_name(services.instance_names(settings))
    timings = settings.run_dir / "timings.json"
    command = [*eschedule(settings), REQUEST, "--name", name, "--timings-file", str(timings)]
    asked_at = time.time()
    sys.stdout.flush()
    code = subprocess.run(command, check=False).returncode
    if code:
        raise DemoError(f"eschedule ended with exit code {code}, as said above; what the host did: {log}")
    request_ms = json.loads(timings.read_text())["timings_ms"]
    instance = show(settings, name)
    address = address_of(instance)
    ssh = ssh_command(settings, address)
    if settings.known_hosts.exists():  # an address that an earlier guest had, under another host key
        run(["ssh-keygen", "-q", "-R", address, "-f", settings.known_hosts])
    answers, logged_in_at, kernel_at = _log_in(ssh, console=settings.state_dir / "instances" / instance["uuid"] / "console.log")
    guest = Guest(name, address, answers, asked_at, logged_in_at, kernel_at, request_ms, instance)
    _check(guest)
    return guest


def show(settings: Settings, name: str) -> dict[str, Any]:
    answer = run([*eschedule(settings), "show", name, "--json"])
    if answer.returncode:
        raise DemoError(f"eschedule show {name} failed: {last_words(answer)}")
    shown: dict[str, Any] = json.loads(answer.stdout)
    return shown


def address_of(instance: Mapping[str, Any]) -> str:
    addresses = [entry["address"] for entry in (instance.get("status") or {}).get("addresses", [])]
    if not addresses:
        raise DemoError(f"{instance.get('name')} runs, but its host published no address; see the log of ecompute")
    return str(addresses[0])


def ssh_command(settings: Settings, address: str) -> list[str]:
    """How to log into the guest."""
    options = (
        "StrictHostKeyChecking=no", f"UserKnownHostsFile={settings.known_hosts}", "IdentitiesOnly=yes", "LogLevel=ERROR",
    )  # fmt: skip
    return ["ssh", "-i", str(settings.ssh_key), *(word for option in options for word in ("-o", option)), f"root@{address}"]


def _log_in(ssh: list[str], *, console: Path) -> tuple[dict[str, str], float, float]:
    """What the guest answers, when it let us in, and when its kernel started."""
    script = "; ".join(QUESTIONS.values())
    deadline = time.monotonic() + SSH_SECONDS
    address = ssh[-1].partition("@")[2]
    answer = None
    while time.monotonic() < deadline:
        if _takes_connections(address):
            answer = run([ssh[0], "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", *ssh[1:], script], timeout_seconds=30)
            if answer.returncode == 0:
                return _answers(answer.stdout, time.time())
        time.sleep(POLL_SECONDS)
    why = last_words(answer) if answer else "port 22 never opened"
    raise DemoError(f"no ssh login within {SSH_SECONDS} s: {why}; the guest's console says: {tail(console)}")


def _takes_connections(address: str) -> bool:
    try:
        with socket.create_connection((address, 22), timeout=1) as connection:
            connection.settimeout(5)
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _answers(text: str, now: float) -> tuple[dict[str, str], float, float]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) != len(QUESTIONS):
        raise DemoError(f"the guest answered {len(lines)} of {len(QUESTIONS)} questions: {lines}")
    answers = dict(zip(QUESTIONS, lines, strict=True))
    answers["root disk"] = "{} with {} free".format(*answers["root disk"].split())
    return answers, now, now - float(answers.pop("uptime"))


def _check(guest: Guest) -> None:
    """
    Raises:
        DemoError: the guest got another identity than it should have.
    """
    wanted = {"uuid": guest.instance["uuid"], "hostname": guest.name, "address": guest.address}
    got = {**guest.answers, "address": guest.answers["address"].partition("/")[0]}
    for what, value in wanted.items():
        if got[what] != value:
            raise DemoError(f"the guest says its {what} is {got[what]}, it should be {value}; please report this")


# -- what it took ----------------------------------------------------------------------------------------------------------


def timeline(guest: Guest) -> list[tuple[str, str, str]]:
    """Rows of phase, milliseconds and remark; the phases of one request in the order in which they happened."""
    events = (guest.instance.get("status") or {}).get("events", [])
    took: dict[str, float] = {}
    for event in events:
        took[event["step"]] = took.get(event["step"], 0) + event["took_ms"]
    asked = guest.request_ms
    started_at = max((_seconds(event["at"]) for event in events if event["step"] == "Start"), default=guest.asked_at)
    rows = [
        ("claim", asked.get("candidates", 0) + asked.get("claim", 0), "Placement: candidates, then the claim"),
        ("etcd", asked.get("store", 0), "one transaction: the spec is what the host builds"),
        ("image", took.get("FetchImage", 0), "fetched into the host's cache" if "FetchImage" in took else "was in the cache"),
        ("disk", took.get("BuildDisk", 0), "an overlay on the image"),
        ("network", took.get("ReserveNetwork", 0), "a MAC and address reserved ahead"),
        ("metadata", took.get("WriteMetadata", 0), "what the guest will ask for"),
        ("define", took.get("Define", 0), "libvirt knows it"),
        ("start", took.get("Start", 0), "QEMU runs"),
        ("kernel up", (guest.kernel_at - started_at) * 1000, "BIOS, boot loader; from now on it is the guest's time"),
        ("ssh", (guest.logged_in_at - guest.kernel_at) * 1000, "until it let us in"),
    ]
    total = (guest.logged_in_at - guest.asked_at) * 1000
    between = total - sum(milliseconds for _, milliseconds, _ in rows)
    rows += [("between", between, "programs starting, hand-overs"), ("total", total, "from the command to the login")]
    return [(phase, f"{max(milliseconds, 0):.0f}", remark) for phase, milliseconds, remark in rows]


def _seconds(timestamp: str) -> float:
    return datetime.datetime.fromisoformat(timestamp).timestamp()
