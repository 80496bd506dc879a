"""Guests inside a namespaced host that one can log into, and the evidence of those that one cannot."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from tests.support.processes import wait_until

SSH_OPTIONS = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ConnectTimeout=3", "BatchMode=yes")


class Host(Protocol):
    """Where the guest is reached from; a ``NamespacedHost`` is one."""

    def run(self, command: list[str | Path], *, timeout_seconds: float, check: bool) -> subprocess.CompletedProcess[str]: ...

    def path(self, inside: str) -> Path: ...


class Deployed(Protocol):
    """What runs the guest there; a ``Deployment`` is one."""

    state_dir: str
    run_dir: str

    def show(self, name: str) -> dict[str, Any]: ...

    def evidence(self) -> str: ...


def make_key(folder: Path) -> Path:
    """A private key in *folder*; the public one is beside it, named with ``.pub``."""
    path = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


class Guest:
    """A guest that one can log into as *user* with *key*.

    Args:
        answers_within: seconds that it may take to boot, on a busy machine that emulates it.
    """

    def __init__(
        self,
        host: Host,
        deployment: Deployed,
        name: str,
        key: Path,
        *,
        user: str = "root",
        answers_within: float = 90,
    ) -> None:
        self.host, self.deployment, self.name, self.key = host, deployment, name, key
        self.user, self.answers_within = user, answers_within
        self.shown = deployment.show(name)
        self.address = self.shown["status"]["addresses"][0]["address"]

    def ssh(self, command: str) -> subprocess.CompletedProcess[str]:
        """The answer, be it that it failed; that there was none in a minute counts as failed, too."""
        options = [word for option in SSH_OPTIONS for word in ("-o", option)]
        words = ["ssh", "-i", self.key, *options, f"{self.user}@{self.address}", command]
        try:
            return self.host.run(words, check=False, timeout_seconds=60)
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(words, 255, "", "no answer in 60 s")

    def say(self, command: str) -> str:
        """What *command* prints in the guest, once it can be logged into."""
        answers: list[str] = []

        def answered() -> bool:
            answer = self.ssh(command)
            answers.append(answer.stdout if answer.returncode == 0 else "")
            return answer.returncode == 0

        wait_until(answered, timeout_seconds=self.answers_within, what=f"{self.name} answers by ssh", evidence=self.evidence)
        return answers[-1].strip()

    def answers(self, questions: Mapping[str, str]) -> dict[str, str]:
        """What each of the commands prints, by its name; in one login, which under emulation takes a second."""
        mark = "answer-of:"
        script = "; ".join(f"echo; echo {shlex.quote(mark + name)}; {command}" for name, command in questions.items())
        parts = [part.partition("\n") for part in f"\n{self.say(script)}".split(f"\n{mark}")[1:]]
        return {name: answer.strip() for name, _, answer in parts}

    def console(self) -> str:
        """All that it has said on its serial console."""
        log = self.host.path(f"{self.deployment.state_dir}/instances/{self.shown['uuid']}/console.log")
        return log.read_text(errors="replace") if log.exists() else ""

    def evidence(self) -> str:
        log = self.host.path(f"{self.deployment.run_dir}/md-server.log")
        served = log.read_text(errors="replace")[-3000:] if log.exists() else ""
        console = f"--- console of {self.name}\n{self.console()[-3000:] or 'nothing'}"
        return f"{console}\n--- md-server.log\n{served}\n{self.deployment.evidence()}"
