"""A watch stream ends with a fault whatever ended it: one that fell silent would be taken for quiet, and changes be lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from common.etcd_rules import Endpoint, Fault
from common.etcd_watch import Stream

ENDPOINT = Endpoint.parse("http://127.0.0.1:2379")


class Call:
    """Answers *answers*, then raises *error* or ends."""

    def __init__(self, answers: list[str], error: Exception | None) -> None:
        self.answers, self.error = answers, error

    def __iter__(self) -> Iterator[str]:
        yield from self.answers
        if self.error:
            raise self.error

    def cancel(self) -> None: ...


@pytest.mark.parametrize("error", [None, Fault("UNAVAILABLE", "gone"), ValueError("a bug"), RuntimeError("a bug")])
def test_however_it_ends_it_says_so(error: Exception | None) -> None:
    def start(_: Iterator[Any]) -> Call:
        return Call(["one"], error)

    stream = Stream(start, "request", lambda ask: ask(), ENDPOINT)
    assert stream.next(10) == "one"
    with pytest.raises(Fault):
        stream.next(10)
    stream.close()
