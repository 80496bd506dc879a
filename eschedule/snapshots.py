"""The command ``snapshot``: of an instance's disk, which its host takes, lists and gives up, and goes back to.

The first three are letters to the host, which has the disk: nothing of them stands in etcd. To go back is asked for in the
spec, since the guest is stopped for it and the host may die on the way; the host is asked before whether there is such a one.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import shlex
import uuid as uuids
from collections.abc import Iterable
from typing import Any

from common.disk_snapshots import (
    CREATE,
    LIST,
    REMOVE,
    Consistency,
    Snapshot,
    SnapshotAnswer,
    Trouble,
    parse_snapshot_name,
)
from common.errors import Conflict, EcomputeError, Permanent, Transient
from common.findings import LEASE_SECONDS, Letter
from common.retry import Deadline
from common.validate import parse_instance, parse_request_id, parse_seconds
from eschedule import post, render
from eschedule.acts import record_alone
from eschedule.changes import Instance, find, read
from eschedule.confirming import NOT_DONE, is_meant
from eschedule.disk_edits import reverted
from eschedule.disk_waiting import ask_and_wait
from eschedule.follow import Goal, host_name
from eschedule.output import CUSTOM, emit
from eschedule.session import Session
from eschedule.sought import NOT_FOUND
from eschedule.tables import PLAIN, Column, Look, block, table

ANSWER_SECONDS = LEASE_SECONDS - 10.0  # a letter is gone after its lease; a guest may take half a minute to hold still
_GIB = 1 << 30
_SAID = {
    Consistency.FROZEN: "frozen: the guest's agent held its file systems still",
    Consistency.CRASH: "crash: as after a power cut, since no agent in the guest held its file systems still",
    Consistency.OFF: "off: the guest was off",
    Consistency.UNKNOWN: "unknown: it was made by hand",
}


def snapshot(session: Session, options: argparse.Namespace) -> int:
    """Run ``snapshot``; its exit code.

    Raises:
        EcomputeError: it is not done; whether it may have been, the text says.
    """
    actions = {"create": _create, "list": _list, "rm": _remove, "revert": _revert}
    return actions[options.action](session, options)


def _create(session: Session, options: argparse.Namespace) -> int:
    now = datetime.datetime.now(datetime.UTC)
    name = parse_snapshot_name(options.name) if options.name is not None else now.strftime("%Y%m%d-%H%M%S")
    given = None if options.request_id is None else parse_request_id(options.request_id)
    request_id = given or str(uuids.uuid4())
    found = _instance(session, options)
    request = uuids.uuid5(found.uuid, request_id)
    again = shlex.join(["eschedule", "snapshot", "create", options.instance, name, "--request-id", request_id])
    try:
        answer = _ask(session, options, found, CREATE, name=name, request=request.hex)
    except (Conflict, Permanent):
        raise
    except Transient as error:
        raise Transient(f"{error}; to go on, repeat it as: {again}") from error
    taken = next((one for one in answer.snapshots if one.name == name), None)
    if taken is None:
        raise Conflict(f"the snapshot {name} of {found.name} was taken, and removed by somebody since")
    record_alone(session, found, name)
    said = [("instance", found.name), ("snapshot", name), ("consistency", _SAID[taken.consistency]), *_sizes(answer)]
    emit(session.screen, options, lambda: snapshot_json(taken), lambda _: block(said))
    return 0


def _list(session: Session, options: argparse.Namespace) -> int:
    found = _instance(session, options)
    answer = _ask(session, options, found, LIST)
    rows = [snapshot_json(one) for one in answer.snapshots]
    sizes = {name: getattr(answer, name) for name in ("disk_bytes", "file_bytes", "free_bytes")}
    whole = {"instance": str(found.uuid), "name": found.name, **sizes, "snapshots": rows}
    is_of_rows = options.output == "name" or str(options.output).startswith(CUSTOM)
    head = block([("instance", found.name), *_sizes(answer)])
    now = datetime.datetime.now(datetime.UTC)
    emit(
        session.screen, options, lambda: rows if is_of_rows else whole,
        lambda look: f"{head}\n{snapshot_table(answer.snapshots, now, look)}",
    )  # fmt: skip
    return 0


def _remove(session: Session, options: argparse.Namespace) -> int:
    found = _instance(session, options)
    _check_there(_ask(session, options, found, LIST), found, options.name)
    answer = _ask(session, options, found, REMOVE, name=options.name)
    record_alone(session, found, options.name)
    session.screen.message(f"{found.name}: the snapshot {options.name} is removed; file: {dict(_sizes(answer))['file']}")
    return 0


def _revert(session: Session, options: argparse.Namespace) -> int:
    found = _instance(session, options)
    _check_there(_ask(session, options, found, LIST), found, options.name)
    question = f"take {found.name} back to {options.name}: what was written since is lost?"
    if not is_meant(session, options, question):
        return NOT_DONE
    done = f"is as it was at {options.name}"
    return ask_and_wait(session, options, [found.uuid], edit=reverted(options.name), goal=Goal.RESTORED, done=done)


def _instance(session: Session, options: argparse.Namespace) -> Instance:
    """The instance, on a host that lives.

    Raises:
        Transient: its host has no heartbeat.
    """
    who = parse_instance(options.instance)
    found = read(session.store, session.keys, find(session.store, session.keys, who), who)
    if found.host is None:
        raise Transient(
            f"the host of {found.name} (provider {found.provider}) has no heartbeat, and only it has the disk: nothing was "
            "done; look: eschedule hosts"
        )
    return found


def _ask(session: Session, options: argparse.Namespace, found: Instance, kind: str, **more: str) -> SnapshotAnswer:
    """The host's answer.

    Raises:
        Transient: it does not come, or the host cannot do it now. Conflict: the name is taken. Permanent: it cannot be done.
    """
    given = getattr(options, "wait_seconds", None)
    seconds = ANSWER_SECONDS if given is None else min(parse_seconds(given, "--wait-seconds"), ANSWER_SECONDS)
    host = host_name(found.host) or str(found.provider)
    arguments: dict[str, tuple[str, ...]] = {"instance": (str(found.uuid),)}
    arguments |= {name: (value,) for name, value in more.items()}
    session.screen.progress(f"asking {host}")
    answers = post.answers(
        session.store, session.keys, [found.provider], Letter(kind, arguments), Deadline(seconds),
        read=SnapshotAnswer.from_json, pulse=session.interruption.check,
    )  # fmt: skip
    answer = answers.get(found.provider)
    if answer is None:
        raise Transient(
            f"{host} has a heartbeat and did not answer within {seconds:g} s: it is busy, or of an earlier version that "
            f"knows no snapshots{'' if kind == LIST else '; whether it was done: eschedule snapshot list ' + found.name}"
        )
    if answer.trouble:
        raise _error(answer, found, host)
    return answer


def _error(answer: SnapshotAnswer, found: Instance, host: str) -> EcomputeError:
    text = f"{found.name} on {host}: {answer.message}"
    if answer.trouble is Trouble.TAKEN:
        return Conflict(f"{text}, of another request; look: eschedule snapshot list {found.name}")
    if answer.trouble is Trouble.BUSY:
        return Transient(f"{text}; nothing was changed, but for what it says")
    return Permanent(text, NOT_FOUND if answer.trouble is Trouble.NOT_FOUND else "Refused")


def _check_there(answer: SnapshotAnswer, found: Instance, name: str) -> None:
    names = [one.name for one in answer.snapshots]
    if name not in names:
        there = f"there are {', '.join(names)}" if names else "it has none"
        raise Permanent(f"{found.name} has no snapshot {name}: {there}; nothing was changed", NOT_FOUND)


# -- text and JSON -------------------------------------------------------------------------------------------------------


def _sizes(answer: SnapshotAnswer) -> list[tuple[str, str]]:
    beyond = max(0, answer.file_bytes - answer.disk_bytes)
    more = f", {_size(beyond)} beyond the disk's size" if beyond else ""
    return [
        ("disk", _size(answer.disk_bytes)),
        ("file", f"{_size(answer.file_bytes)} on its host{more}; {_size(answer.free_bytes)} are free there"),
    ]


def _size(count: int) -> str:
    return f"{count / _GIB:.2f} GiB" if count >= _GIB // 10 else f"{count / (1 << 20):.1f} MiB"


def snapshot_table(snapshots: Iterable[Snapshot], now: datetime.datetime, look: Look = PLAIN) -> str:
    rows = [(one.name, one.consistency, render.age(one.created_at, now), one.created_at) for one in snapshots]
    return table((Column("NAME", 16), "CONSISTENCY", "AGE", Column("CREATED", is_wide=True)), rows, look)


def snapshot_json(one: Snapshot) -> dict[str, Any]:
    """The shape is documented in ``docs/output.md``: fields are added, never renamed."""
    value = dataclasses.asdict(one)
    del value["request"]
    return value
