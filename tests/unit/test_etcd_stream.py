"""A watch stream ends with a fault whatever ended it: one that fell silent would be taken for quiet, and changes be lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from common.etcd_rules import Endpoint, Fault
from common.etcd_watch import Shared, Stream

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


class OneConnection:
    """A connection that only knows whether it was closed."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint, self.is_closed = endpoint, False

    def probe(self, prefix: str) -> None: ...

    def stream(self, prefix: str, revision: int) -> None: ...

    def close(self) -> None:
        self.is_closed = True


class TestShared:
    def test_all_watches_have_one_connection_which_is_kept_for_those_that_go_on(self) -> None:
        opened: list[OneConnection] = []
        shared = Shared(lambda: opened.append(OneConnection(ENDPOINT)) or opened[-1])
        first, second = shared.borrow(), shared.borrow()
        first.close()
        second.close()
        shared.borrow()
        assert [one.is_closed for one in opened] == [False]

    def test_closed_it_goes_with_the_last_watch(self) -> None:
        opened: list[OneConnection] = []
        shared = Shared(lambda: opened.append(OneConnection(ENDPOINT)) or opened[-1])
        first, second = shared.borrow(), shared.borrow()
        first.close()
        shared.close()
        assert [one.is_closed for one in opened] == [False]
        second.close()
        assert [one.is_closed for one in opened] == [True]

    @pytest.mark.parametrize("how", ["close", "turn_from"])
    def test_one_that_nobody_uses_any_more_is_closed_at_once(self, how: str) -> None:
        opened: list[OneConnection] = []
        shared = Shared(lambda: opened.append(OneConnection(ENDPOINT)) or opened[-1])
        shared.borrow().close()
        shared.turn_from(ENDPOINT) if how == "turn_from" else shared.close()
        assert [one.is_closed for one in opened] == [True]

    def test_one_that_failed_is_left_to_those_who_have_it(self) -> None:
        opened: list[OneConnection] = []
        shared = Shared(lambda: opened.append(OneConnection(ENDPOINT)) or opened[-1])
        first, second = shared.borrow(), shared.borrow()
        shared.turn_from(Endpoint.parse("http://another:2379"))
        third = shared.borrow()
        assert third.endpoint == ENDPOINT and len(opened) == 1
        shared.turn_from(ENDPOINT)
        shared.borrow()
        assert len(opened) == 2
        first.close()
        second.close()
        assert not any(one.is_closed for one in opened), "somebody has the first one still"
        third.close()
        assert [one.is_closed for one in opened] == [True, False]

    def test_a_watch_that_failed_leaves_the_connection_that_replaced_its_own(self) -> None:
        """With one endpoint the old and the new one are to the same."""
        opened: list[OneConnection] = []
        shared = Shared(lambda: opened.append(OneConnection(ENDPOINT)) or opened[-1])
        first, second = shared.borrow(), shared.borrow()
        first.abandon()
        shared.borrow()
        second.abandon()
        shared.borrow()
        assert len(opened) == 2
