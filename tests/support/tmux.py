"""A program at a terminal as a person has one: tmux draws what it prints on a screen of so many columns, and types keys.

What a terminal would obey is obeyed: the screen has what somebody would see, and the title what a program made of it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.hosts import NamespacedHost
from tests.support.processes import wait_until

_SETTINGS = "set -g history-limit 20000\nset -g escape-time 0\nset -g status off\n"
# The screen stays when the program has ended, and its exit code is in a file: tmux loses that of one that ends at once.
_AND_STAY = 'code=$1; shift; trap : INT; "$@"; echo $? >"$code.partial"; mv "$code.partial" "$code"; exec sleep 900'


class Terminal:
    """*command* inside *host*, at a terminal of its own; it is hung up at the end."""

    def __init__(self, host: NamespacedHost, command: Sequence[str | Path], *, columns: int = 120, lines: int = 40) -> None:
        self._host = host
        self._directory = Path(tempfile.mkdtemp(prefix="tmux-", dir="/tmp"))  # short: a socket's path may not be long
        self._code = self._directory / "code"
        (self._directory / "conf").write_text(_SETTINGS)
        size = ("-x", str(columns), "-y", str(lines))
        # tmux leaves Ctrl-C as it finds it, and a shell in the background has it ignored.
        shell = ("env", "--default-signal=INT", "sh", "-c", _AND_STAY, "sh", str(self._code))
        self._tmux("new-session", "-d", *size, *shell, *map(str, command), config=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._tmux("kill-server", check=False)
        shutil.rmtree(self._directory, ignore_errors=True)

    def type(self, text: str) -> None:
        self._tmux("send-keys", "-l", "--", text)

    def press(self, key: str) -> None:
        """A key by tmux's name: ``Enter``, ``C-c``, ``C-]``."""
        self._tmux("send-keys", key)

    def resize(self, columns: int, lines: int) -> None:
        self._tmux("resize-window", "-x", str(columns), "-y", str(lines))

    @property
    def shown(self) -> str:
        """The screen with what has gone over its upper end, without colours."""
        return self._tmux("capture-pane", "-p", "-J", "-S", "-")

    @property
    def screen(self) -> list[str]:
        """What is to be seen now, line by line."""
        return self._tmux("capture-pane", "-p").splitlines()

    @property
    def title(self) -> str:
        return self._tmux("display-message", "-p", "#{pane_title}").strip()

    def await_text(self, text: str, *, timeout_seconds: float = 60) -> None:
        wait_until(
            lambda: text in self.shown, timeout_seconds=timeout_seconds, what=f"it shows {text!r}",
            evidence=lambda: self.shown[-2000:],
        )  # fmt: skip

    def ended(self) -> int:
        """The exit code, once there is one."""
        wait_until(self._code.exists, timeout_seconds=60, what="it ends", evidence=lambda: self.shown[-2000:])
        return int(self._code.read_text())

    def _tmux(self, *words: str, check: bool = True, config: bool = False) -> str:
        start = ("-f", str(self._directory / "conf")) if config else ()
        clean = ("env", "-u", "COLUMNS", "-u", "LINES", "LC_ALL=C.UTF-8", "TERM=xterm")  # a terminal has its own size
        command = [*clean, "tmux", "-u", "-S", str(self._directory / "s"), *start, *words]
        return self._host.run(command, check=check, timeout_seconds=30).stdout
