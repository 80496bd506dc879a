"""A real sshd inside a ``NamespacedHost``, and how this machine gets in: by a key of the test's own, as root.

The program is Debian's, unpacked below ``.cache/sshd`` (``packaging/debian-packages``); it ends with the host.
"""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

from tests.support.hosts import HostProcess, NamespacedHost
from tests.support.processes import ROOT, wait_until

HOME = ROOT / ".cache" / "sshd"
PORT = 22
CONFIG = """\
Port {port}
HostKey {directory}/host-key
AuthorizedKeysFile {directory}/user-key.pub
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PidFile none
SetEnv PATH={path}
"""


class SshServer:
    """sshd in *host*; *path* is where commands are looked for there."""

    def __init__(self, host: NamespacedHost, directory: Path, *, path: str) -> None:
        self.host, self.directory = host, directory
        directory.mkdir(parents=True, exist_ok=True)
        for name in ("host-key", "user-key"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name],
                check=True,
                capture_output=True,
                timeout=30,
            )
        (directory / "sshd_config").write_text(CONFIG.format(port=PORT, directory=directory, path=path))
        self._process: HostProcess | None = None

    @property
    def options(self) -> list[str]:
        """``--ssh-option``s by which the client gets in, without a look at this machine's own files."""
        return [
            f"IdentityFile={self.directory / 'user-key'}", "IdentitiesOnly=yes", "StrictHostKeyChecking=accept-new",
            f"UserKnownHostsFile={self.directory / 'known-hosts'}",
        ]  # fmt: skip

    def start(self) -> None:
        self.host.run(["mkdir", "-p", "/run/sshd"])
        libraries = {"LD_LIBRARY_PATH": str(HOME / "usr/lib/x86_64-linux-gnu")}
        # -r: it would begin anew for each connection, without these libraries.
        command = [HOME / "usr/sbin/sshd", "-D", "-e", "-r", "-f", self.directory / "sshd_config"]
        self._process = self.host.spawn(command, log=self.directory / "sshd.log", env=libraries)
        wait_until(self._answers, timeout_seconds=20, what="sshd answers", evidence=self.evidence)

    def evidence(self) -> str:
        log = self.directory / "sshd.log"
        return log.read_text(errors="replace")[-4000:] if log.exists() else "(no log)"

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, self.evidence()
        try:
            with socket.create_connection((self.host.address, PORT), timeout=2) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False
