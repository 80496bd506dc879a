"""A bar for work whose end is known: how far it is, and when it will be done. Drawn by rich, printed by ``screen``.

Imported only where there is something to draw: rich takes longer to import than most commands take to run.
"""

from __future__ import annotations

import io
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TimeRemainingColumn

BAR_WIDTH = 16
WIDTH = BAR_WIDTH + 1 + len("0:00:00")  # of what ``draw`` answers


class Bar:
    """The bar of one thing at a time; another thing begins a new one.

    Args:
        clock: in seconds, from anywhere.
        has_colour: whether it may be coloured.
    """

    def __init__(self, clock: Callable[[], float], *, has_colour: bool) -> None:
        self._text = io.StringIO()
        console = Console(
            file=self._text, force_terminal=True, color_system="standard" if has_colour else None, width=WIDTH,
            legacy_windows=False,
        )  # fmt: skip
        columns = (BarColumn(bar_width=BAR_WIDTH), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, auto_refresh=False, get_time=clock)
        self._what = ""
        self._task: TaskID | None = None

    def draw(self, what: str, done: int, total: int) -> str:
        """The bar of *what*, of which *done* of *total* is done: ``WIDTH`` columns, with the colours of a terminal."""
        if self._task is None or self._what != what:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._what, self._task = what, self._progress.add_task("", total=total, completed=done)
        self._progress.update(self._task, total=total, completed=min(done, total))
        self._text.seek(0)
        self._text.truncate()
        self._progress.console.print(self._progress.get_renderable(), end="")
        return self._text.getvalue().replace("\n", "")
