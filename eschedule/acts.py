"""What a user's command is noted as in the journal, with whatever it changes: one place for all commands.

``Session.act`` is the command at hand. Whoever writes a spec asks ``noted`` for the fields and the notes that go along in the
same transaction; ``changes.change``, and so ``asking.ask``, does that by itself. What changes an instance or a host without
writing its spec or settings, such as a letter, is written down by ``record_alone`` once it is done. Pure, but for that.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from common.errors import EcomputeError
from common.journal import PLACES, Act, Target
from common.keys import Keys
from common.model import InstanceSpec
from common.store import Transaction

if TYPE_CHECKING:
    from eschedule.session import Session

# What these are set to is said by the command itself.
_UNTOLD = frozenset(
    {
        "desired", "boot_request", "reboot_request", "hard_reboot", "restore_request", "rebuild_request", "adopts",
        "alternates", "acts", "hardware",
    }
)  # fmt: skip
_places = itertools.count(time.time_ns())  # of acts without a number of their own: somewhere in the circle, one after the other


class Changing(Protocol):
    """An instance as it was read; ``changes.Instance`` is one."""

    @property
    def uuid(self) -> UUID: ...
    @property
    def name(self) -> str: ...
    @property
    def provider(self) -> UUID: ...
    @property
    def spec(self) -> InstanceSpec: ...


def noted(
    keys: Keys, act: Act | None, found: Changing, fields: Mapping[str, Any], *, message: str | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The *fields* to set in the spec of *found*, with the count of acts, and the notes of that transaction.

    Args:
        act: None where there is no user, as in a library: nothing is written down.
        message: for people; the names of the fields, where not given. Never what they are set to.
    """
    if act is None:
        return dict(fields), {}
    number = found.spec.acts
    text = told(fields) if message is None else message
    return {**fields, "acts": number + 1}, act.on_instance(keys, _target(found), number, text)


def told(fields: Mapping[str, Any]) -> str:
    """The names of *fields* for people, without those that every such command sets."""
    names = (name.removesuffix("_base64").replace("_", " ") for name in fields if name not in _UNTOLD)
    return ", ".join(sorted(names))


def record_alone(session: Session, found: Changing, message: str = "") -> None:
    """Write down what the command at hand has done to an instance, where no spec says so.

    A store that does not take it costs a warning: what was done is done.
    """
    if session.act is not None:
        place = next(_places) % PLACES
        _write(session, session.act.on_instance(session.keys, _target(found), place, message))


def record_host(session: Session, provider: UUID, name: str, message: str = "") -> None:
    """The same of a host, where no transaction of the command's own says so."""
    if session.act is not None:
        _write(session, session.act.on_host(session.keys, provider, name, next(_places) % PLACES, message))


def _target(found: Changing) -> Target:
    return Target(found.uuid, found.name, found.provider)


def _write(session: Session, notes: Mapping[str, str]) -> None:
    try:
        session.store.commit(Transaction(notes=notes))
    except EcomputeError as error:
        session.screen.warning(f"it is done, and could not be written into the journal: {error}")
