"""A clock that only moves when a test moves it."""

from __future__ import annotations


class FakeClock:
    """Seconds in ``now``; call it as one calls ``time.monotonic``."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now
