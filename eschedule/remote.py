"""Commands on another machine, over the system's own ssh: the user's keys, agent, known hosts and ``~/.ssh/config`` hold.

Nothing is ever asked on the terminal (``BatchMode``), every command has a bound, and what is secret goes by standard input: the
command itself can be read by everybody on both machines.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO

from common.errors import ConfigError, Transient
from common.text import escaped, quoted, shortened

# Of two options of one name ssh takes the first: those of the user stand before these.
OPTIONS = ("BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=15", "ServerAliveCountMax=4")
SSH_FAILED = 255
_TARGET = re.compile(r"[^\s-][^\s\x00-\x1f]*")


@dataclass(frozen=True)
class Answer:
    """What a command printed; *last_words* of its standard error."""

    exit_code: int
    output: str
    last_words: str

    @property
    def last_line(self) -> str:
        """Of its standard output: what shells print before a command is none of its words."""
        return (self.output.strip().splitlines() or [""])[-1].strip()


class Remote:
    """The machine *target*, as ssh takes it (``user@host``).

    Raises:
        ConfigError: *target* or an option is none.
    """

    def __init__(self, target: str, options: Sequence[str] = ()) -> None:
        if not _TARGET.fullmatch(target) or not target.isprintable():
            raise ConfigError(f"{quoted(target)} is no machine for ssh; needs HOST or USER@HOST")
        for option in options:
            if not re.fullmatch(r"[A-Za-z]+[= ].*", option):
                raise ConfigError(
                    f"--ssh-option {quoted(option)} is none of ssh's; needs NAME=VALUE, as in Port=2222 (ssh_config(5))"
                )
        self.target = target
        self._options = [part for option in (*options, *OPTIONS) for part in ("-o", option)]

    def run(
        self, command: str, *, seconds: float, given: IO[bytes] | None = None, relay: Callable[[str], None] | None = None
    ) -> Answer:
        """Run the shell *command* there to its end; *relay* is given each line of its standard error.

        Args:
            given: its standard input, a file.

        Raises:
            Transient: ssh could not reach the machine, or was not let in; or it was not done in time.
        """
        with tempfile.TemporaryFile() as output:
            process = self._begin(command, given, output)
            has_ended_late = threading.Event()

            def end() -> None:
                has_ended_late.set()
                _kill(process)

            timer = threading.Timer(seconds, end)
            timer.daemon = True
            timer.start()
            last = ""
            try:
                assert process.stderr is not None  # noqa: S101 - a pipe
                for raw in process.stderr:
                    line = raw.decode(errors="replace").strip()
                    last = shortened(line, 500) or last
                    if line and relay:
                        relay(escaped(line))
                code = process.wait()
            finally:
                timer.cancel()
                if process.poll() is None:  # we were interrupted
                    _kill(process)
                    process.wait()
            output.seek(0)
            answer = Answer(code, output.read().decode(errors="replace"), escaped(last))
        if has_ended_late.is_set():
            raise Transient(
                f"{self.target} was not done within {seconds:.0f} s: {answer.last_words or 'it said nothing'}; it "
                "may be repeated"
            )
        if code == SSH_FAILED:
            raise Transient(
                f"ssh {self.target} failed: {answer.last_words or 'it said nothing'}; see that this works without a question: "
                f"ssh {self.target} true (a host seen for the first time: --ssh-option StrictHostKeyChecking=accept-new)"
            )
        return answer

    def _begin(self, command: str, given: IO[bytes] | None, output: IO[bytes]) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                ["ssh", "-T", *self._options, "--", self.target, command],
                stdin=given or subprocess.DEVNULL, stdout=output, stderr=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
        except FileNotFoundError:
            raise ConfigError("there is no ssh on this machine: apt-get install openssh-client") from None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End ssh and what it started, such as a proxy, which would keep its standard error open."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def file_with(content: bytes) -> IO[bytes]:
    """A file without a name that holds *content*, for ``Remote.run``; nobody else can open it."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by its user
    file.write(content)
    file.seek(0)
    return file
