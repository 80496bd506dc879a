"""What happened: the journal's records, where they stand in etcd, and the few words that users and hosts write there.

One small key for each thing that happened, written in the very transaction that did it or says it, as its ``notes``: so it
costs no round trip, and there is no deed without its note. It goes by itself after some days (``common/journal_lease.py``), and
each writer has so many places for each instance or host, which it fills in a circle: whatever goes wrong again and again takes
no more. Who reads goes by etcd's revisions, not by names or times. Nothing that a guest says comes in, nor any value that a
user gave but ``--reason``.

A user's act is an ``Act``; whoever writes a spec or what is set for a host adds ``notes_of`` it. Pure.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from common.keys import Keys
from common.records import SCHEMA, Record
from common.text import shortened

PLACES = 32  # of one writer, for one instance or host
MOST_MESSAGE_CHARACTERS = 300
USER = "user"


class Subject(enum.StrEnum):
    """Whom something happened to."""

    INSTANCE = "instance"
    HOST = "host"


@dataclass(frozen=True)
class Happening(Record):
    """One thing that happened.

    Args:
        at: wall time of whoever wrote it, for people.
        what: in a word or two: a user's command (*by* tells whose), or what a host did or saw.
        uuid: the instance's, or the host's provider.
        provider: the host that it happened on. *host*: its name, "" where the writer did not know it.
        reason: as the user gave it.
        message: more, for people.
    """

    at: str
    what: str
    subject: Subject
    uuid: UUID
    name: str = ""
    provider: UUID | None = None
    host: str = ""
    by: str = ""
    reason: str = ""
    message: str = ""
    schema: int = SCHEMA


class Target(NamedTuple):
    """An instance that something happens to, and the host that it is on."""

    uuid: UUID
    name: str
    provider: UUID


@dataclass(frozen=True)
class Act:
    """What a user does by one command, to be written down with whatever it changes.

    Args:
        verb: the command, such as ``stop`` or ``volume attach``.
        by: user@machine. *at*: when the command was begun.
    """

    verb: str
    by: str
    at: str
    reason: str = ""

    def on_instance(self, keys: Keys, target: Target, number: int, message: str = "") -> dict[str, str]:
        """What to write down of it with the change of the instance's spec that is its *number*-th (``InstanceSpec.acts``)."""
        happening = Happening(
            self.at, self.verb, Subject.INSTANCE, target.uuid, target.name, target.provider, by=self.by, reason=self.reason,
            message=_short(message),
        )  # fmt: skip
        return {keys.event(Subject.INSTANCE, target.uuid, USER, number % PLACES): happening.to_json()}

    def on_host(self, keys: Keys, provider: UUID, name: str, number: int, message: str = "") -> dict[str, str]:
        """The same with a change of what is set for a host (``HostAdmin.acts``)."""
        happening = Happening(
            self.at, self.verb, Subject.HOST, provider, name, provider, name, self.by, self.reason, _short(message)
        )
        return {keys.event(Subject.HOST, provider, USER, number % PLACES): happening.to_json()}


@dataclass(frozen=True)
class HostPen:
    """How a host writes down what it did and saw; *now* is wall time for people."""

    keys: Keys
    provider: UUID
    host: str
    now: Callable[[], str]

    def of_instance(self, instance: UUID, name: str, number: int, what: str, message: str = "") -> dict[str, str]:
        """The *number*-th thing that this host writes down of an instance."""
        return {
            self.keys.event(Subject.INSTANCE, instance, self.provider, number % PLACES): self._text(
                instance, name, what, message
            )
        }

    def last_of_instance(self, instance: UUID, name: str, what: str, message: str = "") -> dict[str, str]:
        """The last thing that this host writes down of an instance that leaves it."""
        return {self.keys.event(Subject.INSTANCE, instance, self.provider, "last"): self._text(instance, name, what, message)}

    def of_host(self, number: int, what: str, message: str = "") -> dict[str, str]:
        """The *number*-th thing that this process writes down of its host."""
        happening = Happening(
            self.now(), what, Subject.HOST, self.provider, self.host, self.provider, self.host, message=_short(message)
        )
        return {self.keys.event(Subject.HOST, self.provider, self.provider, number % PLACES): happening.to_json()}

    def _text(self, instance: UUID, name: str, what: str, message: str) -> str:
        return Happening(
            self.now(), what, Subject.INSTANCE, instance, name, self.provider, self.host, message=_short(message)
        ).to_json()  # fmt: skip


def former_name(keys: Keys, name: str, instance: UUID) -> dict[str, str]:
    """To be written down with the end of *name*, so that what happened to its *instance* is found by it."""
    return {keys.former_name(name, instance): str(instance)}


def _short(message: str) -> str:
    return shortened(message, MOST_MESSAGE_CHARACTERS)
