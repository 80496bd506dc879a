"""A signal while a change is on its way to etcd: what is said of it is what etcd did."""

from __future__ import annotations

import argparse
import io
import signal
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from common.config import ScheduleConfig
from common.errors import StoreUnavailable
from common.keys import Keys
from common.model import Desired, ImageRef, InstanceKey, InstanceSpec
from common.store import Transaction
from eschedule import commands
from eschedule.interruption import Interruption
from eschedule.screen import Screen
from eschedule.session import Session
from tests.fakes.store import FakeStore

KEYS = Keys()
PROVIDER = uuid4()
NAMES = ("web-1", "web-2")
INSTANCES = {name: uuid4() for name in NAMES}


class Terminal:
    """One run of the program that is interrupted while etcd answers its first change.

    *after* happens once the change is made, before anyone hears of it.
    """

    def __init__(self, after: Callable[[Terminal], None] | None = None) -> None:
        self.store = FakeStore()
        for name, instance in INSTANCES.items():
            puts = {
                KEYS.name(name): str(instance),
                KEYS.instance(instance): InstanceKey(PROVIDER, name, "digest").to_json(),
                KEYS.spec(PROVIDER, instance): InstanceSpec(instance, name, ImageRef("/srv/a.img"), {"VCPU": 1}).to_json(),
            }
            self.store.commit(Transaction(puts=puts))
        self._errors = io.StringIO()
        self.interruption = Interruption()
        self.session = Session(ScheduleConfig(), Screen(output=io.StringIO(), errors=self._errors), self.interruption)
        self.session.__dict__["store"] = self.store
        self._replace, self._after = self.store.replace, after
        self.store.replace = self._interrupted  # type: ignore[method-assign]

    def _interrupted(self, key: str, value: str, *, seen: int, **more: Any) -> int:
        revision = self._replace(key, value, seen=seen, **more)
        if self._after:
            self._after(self)
        return revision

    def signal(self) -> None:
        self.interruption._heard(signal.SIGINT, None)

    def destroy(self) -> tuple[int, str]:
        """The exit code and the last line of ``destroy web-1 web-2``."""
        options = argparse.Namespace(instances=list(NAMES), yes=False, no_wait=False, wait_seconds=None)
        code = commands.destroy(self.session, options)
        return code, self._errors.getvalue().splitlines()[-1]

    def asked_for(self) -> set[str]:
        """The names of those that are to be destroyed."""
        specs = {name: self.store.get(KEYS.spec(PROVIDER, instance)) for name, instance in INSTANCES.items()}
        return {name for name, item in specs.items() if item and InstanceSpec.from_json(item.value).desired is Desired.DELETED}


def test_a_change_that_etcd_made_before_its_answer_came_is_told() -> None:
    terminal = Terminal(after=Terminal.signal)
    code, said = terminal.destroy()
    assert (code, said) == (
        130,
        "eschedule: interrupted; what was asked for goes on until web-1 is destroyed; look: eschedule list",
    )
    assert terminal.asked_for() == {"web-1"}


def test_a_second_signal_leaves_at_once_and_says_nothing_that_may_be_untrue() -> None:
    def twice(terminal: Terminal) -> None:
        terminal.signal()
        terminal.signal()

    terminal = Terminal(after=twice)
    assert terminal.destroy() == (130, "eschedule: interrupted; look at what was changed: eschedule list")
    assert terminal.asked_for() == {"web-1"}


def test_where_etcd_was_away_it_is_not_said_that_nothing_was_changed() -> None:
    def lost(terminal: Terminal) -> None:
        terminal.signal()
        raise StoreUnavailable("no answer", may_have_happened=True)

    assert Terminal(after=lost).destroy() == (130, "eschedule: interrupted; look at what was changed: eschedule list")


def test_before_anything_was_asked_for_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    with monkeypatch.context() as context:
        context.setattr(terminal.store, "get", lambda _key: terminal.signal())
        assert terminal.destroy() == (130, "eschedule: interrupted; nothing was changed")
    assert terminal.asked_for() == set()
