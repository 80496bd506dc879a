"""One module per scenario: ``run(bench) -> Outcome``. ``NAMES`` is the order in which all of them run.

A scenario brings up what it measures by the test fixtures' own classes (``tests/support``), so that it runs wherever the tests
do, and leaves nothing behind.
"""

from __future__ import annotations

NAMES = ("command-line", "one-guest", "many-guests", "image-size", "scheduling", "scale", "metadata", "idle")
