"""What a command works with: configuration, store, Placement and screen, each opened when it is first asked for."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import getpass
import os
import socket
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from common.config import ScheduleConfig
from common.journal import Act
from common.keys import Keys
from common.store import Store
from common.text import escaped, utc_text
from eschedule.interruption import Interruption
from eschedule.screen import Screen

if TYPE_CHECKING:
    from common.placement import Placement

LAST_LOOK_SECONDS = 2.0
MOST_BY_CHARACTERS = 200


class Session:
    """One run of the program. ``close`` it.

    Args:
        act: the command at hand as the journal is to have it; None: what is changed is not written down.
    """

    def __init__(
        self, config: ScheduleConfig, screen: Screen, interruption: Interruption, *,
        clock: Callable[[], float] = time.monotonic, act: Act | None = None,
    ) -> None:  # fmt: skip
        self.act = act
        self.config = config
        self.screen = screen
        self.interruption = interruption
        self.clock = clock
        self.keys = Keys(config.etcd.prefix)

    @cached_property
    def store(self) -> Store:
        # Here, because grpc takes longer to import than most commands take to run.
        from common.etcd_store import EtcdStore  # noqa: PLC0415

        return EtcdStore(self.config.etcd)

    @contextlib.contextmanager
    def last_look(self) -> Iterator[Store]:
        """A store for a question at the end of a run that was interrupted: nobody waits long for its answer then."""
        from common.etcd_store import EtcdStore  # noqa: PLC0415 - as above

        seconds = min(LAST_LOOK_SECONDS, self.config.etcd.deadline_seconds)
        store = EtcdStore(dataclasses.replace(self.config.etcd, deadline_seconds=seconds))
        try:
            yield store
        finally:
            store.close()

    @cached_property
    def placement(self) -> Placement:
        from common.placement import Placement  # noqa: PLC0415 - imports requests

        return Placement(self.config.placement, etcd_prefix=self.config.etcd.prefix)

    @cached_property
    def volume_placement(self) -> Placement:
        """The same, for claims of volumes."""
        from common.placement import Placement  # noqa: PLC0415 - imports requests
        from common.placement_types import VOLUME  # noqa: PLC0415

        return Placement(self.config.placement, etcd_prefix=self.config.etcd.prefix, consumer_type=VOLUME)

    def close_placement(self) -> None:
        """Give its connections back before a long wait: it serves some hundred at a time. It can be asked again."""
        for name in self.__dict__.keys() & {"placement", "volume_placement"}:
            getattr(self, name).close()

    def close_store(self) -> None:
        """Give its connection back before a program of the system takes over. It can be asked again."""
        if "store" in self.__dict__:
            self.__dict__.pop("store").close()

    def close(self) -> None:
        """Close what was opened."""
        for name in ("store", "placement", "volume_placement"):
            if name in self.__dict__:
                getattr(self, name).close()


def act_of(options: argparse.Namespace) -> Act:
    """The command that *options* are of, begun now."""
    words = (options.command, getattr(options, "action", None), getattr(options, "trait_action", None))
    return act_now(" ".join(filter(None, words)), getattr(options, "reason", None) or "")


def act_now(verb: str, reason: str) -> Act:
    """*verb*, begun now by who runs this program."""
    now = utc_text(datetime.datetime.now(datetime.UTC))
    return Act(verb, escaped(user_at_host())[:MOST_BY_CHARACTERS], now, reason)


def user_at_host() -> str:
    """Who runs this program, for people."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no such user in this container
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
