"""A terminal that is written over again and again, and single keys that are typed at it. It is given back as it was.

Only ``top`` uses it. It knows nothing of what is shown.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from eschedule.screen import Screen

_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # the other buffer of xterm's kind, without a cursor
_HOME, _END_OF_LINE, _END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


class FullScreen:
    """What is shown is cut to the terminal's lines; its columns are the caller's to keep to."""

    def __init__(self, screen: Screen, keyboard: int | None) -> None:
        self._screen, self._keyboard = screen, keyboard

    def show(self, text: str) -> None:
        """Have *text*, and nothing else, on the screen."""
        lines = text.splitlines()[: max(1, shutil.get_terminal_size().lines - 1)]
        self._screen.data(_HOME + "".join(f"{line}{_END_OF_LINE}\n" for line in lines) + _END_OF_SCREEN)

    def key(self, seconds: float) -> str:
        """The key that is typed within *seconds*, "" where none is."""
        if self._keyboard is None:
            time.sleep(max(0.0, seconds))
            return ""
        ready, _, _ = select.select([self._keyboard], [], [], max(0.0, seconds))
        typed = os.read(self._keyboard, 1) if ready else b""
        if ready and not typed:  # nobody can type there any more
            self._keyboard = None
        return typed.decode("ascii", "replace")


@contextmanager
def full_screen(screen: Screen) -> Iterator[FullScreen]:
    """The terminal of standard output, and the keyboard of standard input where that is one."""
    keyboard = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
    before = termios.tcgetattr(keyboard) if keyboard is not None else None
    try:
        if keyboard is not None:
            tty.setcbreak(keyboard)
        screen.data(_ENTER)
        yield FullScreen(screen, keyboard)
    finally:
        if keyboard is not None and before is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
        with contextlib.suppress(BrokenPipeError):
            screen.data(_LEAVE)
