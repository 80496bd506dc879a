"""The cluster for Python programs: what the command line does, as typed methods that print nothing and raise what failed.

    from eschedule import Cluster

    with Cluster() as cluster:
        web = cluster.create("resources=VCPU:1,DISK_GB:1,MEMORY_MB:256", "debian-12", name="web")

Every method is the way of the verb of its name: same checks, same defaults of schedule.yaml, same promises after a crash or a
lost answer. ``docs/python.md`` has an example of all of it.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from uuid import UUID, uuid4

from common.config import ScheduleConfig, load_schedule
from common.errors import ConfigError, EcomputeError
from common.journal import Act
from common.text import quoted
from common.validate import check_user_data, parse_instance, parse_name, parse_public_keys
from eschedule.arguments import parse
from eschedule.asking import ask
from eschedule.batch import BatchScheduler
from eschedule.changes import Edit, Instance, destroyed, find, powered_off, read, rebooted, started, stopped
from eschedule.command_line.parser import parse_reason
from eschedule.creating import planner_of
from eschedule.disk_edits import rebuilt
from eschedule.follow import Ending, Follower, Goal, Outcome
from eschedule.image_registry import registered
from eschedule.intake import request_from
from eschedule.interruption import Interruption
from eschedule.labelling import relabelled
from eschedule.labels import parse_labels
from eschedule.listing import HostRow, InstanceRow, list_hosts, list_instances
from eschedule.protection import PROTECTED, UNPROTECTED
from eschedule.rebuilding import chosen
from eschedule.renaming import give_name
from eschedule.request import Request
from eschedule.resize import ask_for_amounts, rebooting
from eschedule.resizing import nothing_more
from eschedule.scheduler import Scheduler
from eschedule.screen import Screen
from eschedule.session import Session, act_now
from eschedule.still_edits import paused, resumed, suspended, unpaused
from eschedule.stored_keys import look_up
from eschedule.waiting import row_of, rows_of, unreached, wait

logger = logging.getLogger("eschedule")
Who = UUID | str  # an instance's uuid, or its name
Awaited = Literal["running", "ready"]


class Cluster:
    """One deployment: its etcd and its Placement, each asked when it is first needed. ``close`` it, or use ``with``.

    For one thread at a time; signals are left to the program.

    Args:
        config: schedule.yaml as read, or its path; None finds it as the command line does.
        reason: why things are changed, for whoever asks: ``eschedule events``.

    Raises:
        ConfigError: schedule.yaml is wrong, or *reason* has more than 500 characters or several lines.
    """

    def __init__(self, config: ScheduleConfig | Path | str | None = None, *, reason: str = "") -> None:
        self._reason = parse_reason(reason)
        if not isinstance(config, ScheduleConfig):
            config = load_schedule(None if config is None else Path(config))
        self._session = Session(config, _Silent(), Interruption())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections; it can be used again."""
        self._session.close_store()
        self._session.close_placement()

    # -- looking ---------------------------------------------------------------------------------------------------------

    def instances(self) -> list[InstanceRow]:
        """All instances by name, without what only ``instance`` has (``listing.NOT_LISTED``)."""
        return list_instances(self._session.store, self._session.keys)

    def instance(self, who: Who) -> InstanceRow:
        """The instance *who* as it is now.

        Raises:
            Permanent: there is none.
        """
        return row_of(self._session, self._find(who), who)

    def hosts(self) -> list[HostRow]:
        """All hosts by name, with what is used of them.

        Raises:
            PlacementUnavailable: Placement did not answer.
        """
        return list_hosts(self._session.store, self._session.keys, self._session.placement)

    # -- creating --------------------------------------------------------------------------------------------------------

    def request(
        self, query: str, image: str | None = None, *, options: Sequence[str] = (), keys: Sequence[str] | None = None,
        user_data: str | bytes | None = None,
    ) -> Request:  # fmt: skip
        """What ``create`` takes: a checked request with the defaults of schedule.yaml; ``dataclasses.replace`` changes more.

        Args:
            query: ``resources=VCPU:1,…``, with all that Placement's query can express.
            image: a registered name, URL or absolute path.
            options: as ``eschedule create`` has them, such as ``("--restart", "always")``.
            keys: public keys, each as a line of a ``.pub`` file; None: those of schedule.yaml.
            user_data: for the guest's cloud-init, at most 64 KiB.

        Raises:
            ConfigError: something of it is wrong; nothing was asked for yet.
        """
        session = self._session
        words = ["create", query, *([] if image is None else ["--image", image]), *options]
        find_image = partial(registered, session.store, session.keys)
        made = request_from(parse(words), session.config, partial(look_up, session), find_image)
        if keys is not None:
            made = dataclasses.replace(made, keys=tuple(dict.fromkeys(one for key in keys for one in parse_public_keys(key))))
        if user_data is not None:
            data = user_data.encode() if isinstance(user_data, str) else user_data
            made = dataclasses.replace(made, user_data=check_user_data(data, "user_data"))
        return made

    def create(
        self, query: str | Request, image: str | None = None, *, name: str | None = None, options: Sequence[str] = (),
        keys: Sequence[str] | None = None, user_data: str | bytes | None = None, uuid: UUID | None = None,
        wait_for: Awaited | None = "running", wait_seconds: float | None = None,
    ) -> InstanceRow:  # fmt: skip
        """Create one instance; as it is when *wait_for* is reached, or at once with None.

        Args:
            query: as ``request``, which takes the other arguments that are not named here.
            uuid: of the instance. A call that was repeated with the same one creates nothing twice.
            wait_seconds: None: that of schedule.yaml.

        Raises:
            NoCapacity: no host can take it; the text says why.
            Conflict: the name or the uuid belongs to another one.
            ConfigError: something of it is wrong.
            Transient: etcd or Placement did not answer, or the wait was over: to go on, repeat it with the same *uuid*.
            Permanent: it was built, and failed.
        """
        request = self._as_request(query, image, name, options, keys=keys, user_data=user_data)
        if request.count != 1:
            raise ValueError("several instances are asked for: see create_set")
        self._session.act = act_now("create", self._reason)
        given = uuid or request.instance_uuid(self._session.keys.prefix, uuid4)
        placed = planner_of(self._session, Scheduler).create(dataclasses.replace(request, uuid=given, request_id=None))
        if wait_for is not None:
            self._wait(placed.uuid, Goal(wait_for), wait_seconds, placed.provider)
        return row_of(self._session, placed.uuid)

    def create_set(
        self, query: str | Request, image: str | None = None, *, count: int, name: str | None = None,
        options: Sequence[str] = (), keys: Sequence[str] | None = None, user_data: str | bytes | None = None,
        request_id: str | None = None, wait_for: Awaited | None = "running", wait_seconds: float | None = None,
    ) -> list[InstanceRow]:  # fmt: skip
        """Create *count* instances or none; arguments and errors as ``create``, but for:

        Args:
            name: the common part; each has its number behind it, or where ``{n}`` is.
            request_id: names the set. A call that was repeated with the same one creates nothing twice.
        """
        more = [*options, "--count", str(count)] if isinstance(query, str) else options
        request = self._as_request(query, image, name, more, keys=keys, user_data=user_data)
        given = request_id or request.request_id or str(uuid4())
        request = dataclasses.replace(request, request_id=given, count=count)
        is_new = request_id is None
        self._session.act = act_now("create", self._reason)
        placed = planner_of(self._session, BatchScheduler).create_all(request, is_new=is_new)
        if wait_for is not None:
            self._wait_for_all({one.uuid: one.provider for one in placed.instances}, Goal(wait_for), wait_seconds)
        return rows_of(self._session, [one.uuid for one in placed.instances])

    def _as_request(
        self, query: str | Request, image: str | None, name: str | None, options: Sequence[str], **more: Any
    ) -> Request:
        if isinstance(query, str):
            return self.request(query, image, options=[*options, *([] if name is None else ["--name", name])], **more)
        if options or any(value is not None for value in (image, name, *more.values())):
            raise ValueError("a Request says all of it; change it by dataclasses.replace")
        return query

    # -- changing --------------------------------------------------------------------------------------------------------

    def start(self, *who: Who, wait_seconds: float | None = None) -> list[InstanceRow]:
        """Have *who* run; as they are then. Errors as ``stop``."""
        return self._change("start", who, started, Goal.RUNNING, wait_seconds)

    def stop(self, *who: Who, force: bool = False, wait_seconds: float | None = None) -> list[InstanceRow]:
        """Have *who* shut down, with *force* without asking the guest. All are asked before the first is waited for.

        Raises:
            Permanent: there is no such instance, or its host cannot do it.
            Conflict: it is being destroyed, or others kept changing it.
            Transient: etcd did not answer, or the wait was over; what was asked for goes on, and asking again is safe.
        """
        return self._change("stop", who, powered_off if force else stopped, Goal.STOPPED, wait_seconds)

    def reboot(self, *who: Who, hard: bool = False, wait_seconds: float | None = None) -> list[InstanceRow]:
        """Have *who* boot again, with *hard* without asking the guest. Errors as ``stop``."""
        return self._change("reboot", who, rebooted(hard=hard), Goal.REBOOTED, wait_seconds)

    def pause(self, *who: Who, wait_seconds: float | None = None) -> list[InstanceRow]:
        """Have the CPUs of *who* stopped where they are. Errors as ``stop``."""
        return self._change("pause", who, paused, Goal.PAUSED, wait_seconds)

    def unpause(self, *who: Who, wait_seconds: float | None = None) -> list[InstanceRow]:
        """Have *who*, which are paused, go on. Errors as ``stop``."""
        return self._change("unpause", who, unpaused, Goal.RUNNING, wait_seconds)

    def suspend(self, *who: Who, wait_seconds: float | None = None) -> list[InstanceRow]:
        """Have the memory of *who* saved to files of their hosts, and freed. Errors as ``stop``."""
        return self._change("suspend", who, suspended, Goal.SUSPENDED, wait_seconds)

    def resume(self, *who: Who, wait_seconds: float | None = None) -> list[InstanceRow]:
        """Have *who*, which are suspended, go on from their saved memory. Errors as ``stop``."""
        return self._change("resume", who, resumed, Goal.RUNNING, wait_seconds)

    def destroy(self, *who: Who, wait_seconds: float | None = None) -> None:
        """Remove *who* with their disks, unasked. Errors as ``stop``; a protected one is a Conflict."""
        self._change("destroy", who, destroyed, Goal.GONE, wait_seconds)

    def label(self, *who: Who, add: Mapping[str, str] | None = None, remove: Collection[str] = ()) -> list[InstanceRow]:
        """Set the labels *add* of *who*, and take those of *remove* away. Errors as ``stop``; ConfigError: one is none."""
        words = [f"{name}={value}" for name, value in (add or {}).items()] + [f"{name}-" for name in remove]
        return self._ask_all("label", who, relabelled(*parse_labels(words)))

    def protect(self, *who: Who) -> list[InstanceRow]:
        """Have *who* neither destroyed nor rebuilt until ``unprotect``. Errors as ``stop``."""
        return self._ask_all("protect", who, PROTECTED)

    def unprotect(self, *who: Who) -> list[InstanceRow]:
        """Let *who* be destroyed and rebuilt again. Errors as ``stop``."""
        return self._ask_all("unprotect", who, UNPROTECTED)

    def rename(self, who: Who, name: str) -> InstanceRow:
        """Have *who* called *name*; what the guest calls itself stays. Errors as ``stop``; Conflict: the name is taken."""
        instance, session = self._find(who), self._session
        give_name(session.store, session.keys, instance, parse_name(name, "the new name"), who=who, act=self._act("rename"))
        return row_of(session, instance, who)

    def rebuild(self, *who: Who, image: str | None = None, wait_seconds: float | None = None) -> list[InstanceRow]:
        """Make the disks of *who* anew, with all that is on them lost, unasked: of *image*, or of those that they have.

        Raises:
            ConfigError: the image does not go with one of them; nothing was asked for.
            EcomputeError: as ``stop``; a protected one is a Conflict.
        """
        session = self._session
        specs = [read(session.store, session.keys, self._find(one), one).spec for one in dict.fromkeys(who)]
        ref, hardware = (None, None) if image is None else chosen(session, image, None, specs)
        return self._change("rebuild", [spec.uuid for spec in specs], rebuilt(ref, hardware), Goal.REBUILT, wait_seconds)

    def resize(
        self, *who: Who, cpus: int | None = None, memory_mib: int | None = None, disk_gib: int | None = None,
        reboot: bool = False, wait_seconds: float | None = None,
    ) -> list[InstanceRow]:  # fmt: skip
        """Give *who* so much: a larger disk at once, the rest with their next start, or, with *reboot*, now.

        Raises:
            ConfigError: nothing is named, or it is too little for the image.
            NoCapacity: the host of one has no room for it; the ones before it were asked already.
            EcomputeError: as ``stop``.
        """
        amounts = {"VCPU": cpus, "MEMORY_MB": memory_mib, "DISK_GB": disk_gib}
        wanted = {name: amount for name, amount in amounts.items() if amount is not None}
        if not wanted:
            raise ConfigError("nothing is to be changed; say cpus, memory_mib or disk_gib")
        self._act("resize")
        moreover = rebooting(wanted, hard=False) if reboot else nothing_more
        whom = dict.fromkeys(map(self._find, who))
        found = [ask_for_amounts(self._session, instance, wanted, moreover).found for instance in whom]
        places = {one.uuid: one.provider for one in found}
        self._wait_for_all(places, Goal.REBOOTED if reboot else Goal.APPLIED, wait_seconds)
        return rows_of(self._session, list(whom))

    def wait(self, who: Who, goal: Goal | str = Goal.RUNNING, wait_seconds: float | None = None) -> InstanceRow | None:
        """Wait until *who* is as *goal* says; as it is then, None where it is gone.

        Raises:
            ConfigError: there is no such goal.
            Permanent: it never will be. Transient: it was not within *wait_seconds*, or etcd did not answer.
        """
        if goal not in list(Goal):
            raise ConfigError(f"{quoted(str(goal))} is no goal; there are {', '.join(Goal)}")
        instance = self._wait(who, Goal(goal), wait_seconds)
        return None if Goal(goal) is Goal.GONE else row_of(self._session, instance, who)

    def _change(
        self, verb: str, who: Iterable[Who], edit: Edit, goal: Goal, wait_seconds: float | None
    ) -> list[InstanceRow]:  # fmt: skip
        found = self._asked(verb, who, edit)
        self._wait_for_all({one.uuid: one.provider for one in found}, goal, wait_seconds)
        return [] if goal is Goal.GONE else rows_of(self._session, [one.uuid for one in found])

    def _ask_all(self, verb: str, who: Iterable[Who], edit: Edit) -> list[InstanceRow]:
        """As ``_change``, of what no host has to do anything for."""
        return rows_of(self._session, [one.uuid for one in self._asked(verb, who, edit)])

    def _asked(self, verb: str, who: Iterable[Who], edit: Edit) -> list[Instance]:
        self._act(verb)
        return [ask(self._session, self._named(one), edit) for one in dict.fromkeys(who)]

    def _act(self, verb: str) -> Act | None:
        self._session.act = act_now(verb, self._reason)
        return self._session.act

    def _wait(self, who: Who, goal: Goal, wait_seconds: float | None, provider: UUID | None = None) -> UUID:
        begun, instance = time.monotonic(), self._find(who)
        outcome = wait(self._session, instance, goal, self._seconds(wait_seconds), provider=provider)
        self._check(str(who), outcome, goal, begun)
        return instance

    def _wait_for_all(self, places: dict[UUID, UUID], goal: Goal, wait_seconds: float | None) -> None:
        begun = time.monotonic()
        self._session.close_placement()
        follower = Follower(self._session.store, self._session.keys, on_view=lambda _: None, clock=self._session.clock)
        for instance, outcome in follower.follow_all(places, goal, self._seconds(wait_seconds)).items():
            if isinstance(outcome, EcomputeError):
                raise outcome
            self._check(str(instance), outcome, goal, begun)

    def _check(self, who: str, outcome: Outcome, goal: Goal, begun: float) -> None:
        if outcome.ending is not Ending.REACHED:
            name = outcome.view.name if outcome.view else who
            raise unreached(name, outcome, goal, time.monotonic() - begun)

    def _seconds(self, wait_seconds: float | None) -> float:
        return self._session.config.wait_seconds if wait_seconds is None else wait_seconds

    def _named(self, who: Who) -> Who:
        return parse_instance(who) if isinstance(who, str) else who

    def _find(self, who: Who) -> UUID:
        return find(self._session.store, self._session.keys, self._named(who))


class _Silent(Screen):
    """Prints nothing: warnings go to the program's log, under the name ``eschedule``."""

    def __init__(self) -> None:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123 - closed, and never written to
            super().__init__(output=nowhere, errors=nowhere, is_quiet=True)

    def message(self, text: str) -> None:
        logger.info("%s", text)

    def warning(self, text: str) -> None:
        logger.warning("%s", text)
