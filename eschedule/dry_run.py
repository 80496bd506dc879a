"""``create --dry-run``: where the instances of a request would go and what would be written; claims and writes nothing.

It asks the same questions as the request itself and plans by the same rules; somebody else may take the room a moment later.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from common.model import InstanceSpec
from eschedule import cards, grouping
from eschedule.batch import BatchScheduler, BatchSet
from eschedule.claims import Holding, describe
from eschedule.creating import planner_of
from eschedule.output import emit
from eschedule.packing import Option
from eschedule.planning import Live, Search
from eschedule.request import Request
from eschedule.session import Session
from eschedule.tables import block


@dataclass(frozen=True)
class Planned:
    """Where one instance would go. *others*: the hosts that would be tried after it; *keys*: what would be written to etcd."""

    spec: InstanceSpec
    provider: UUID
    host: str
    others: tuple[str, ...]
    keys: tuple[str, ...]
    is_named: bool  # its uuid is known before it is made


class Rehearsal(BatchScheduler):
    """A scheduler that stops before it takes anything."""

    def plan(self, request: Request) -> tuple[list[Planned], int]:
        """What would be made for *request*, and how many instances of it are there already.

        Raises:
            Conflict: a name or a uuid belongs to something else, or the group has another policy.
            NoCapacity: not all of them fit; the text says why.
            EcomputeError: etcd or Placement did not answer.
        """
        chosen = self._members(request) if request.count > 1 else self._single(request)
        chosen.may_be_left_behind = False
        self._on_step("reading etcd")
        search = Search(self._look_up(chosen))
        missing = len(chosen.missing())
        if not missing:
            return [], len(chosen.members)
        search.wiring.look(missing)
        for doubt in search.wiring.doubts():
            self._on_warning(doubt)
        plan = self._plan(chosen, search)
        search.wiring.begin()
        planned = [self._planned(chosen.members[uuid], uuid, option, live, search) for uuid, option, live in plan]
        return planned, len(chosen.members) - missing

    def _single(self, request: Request) -> BatchSet:
        """The set of one, under the uuid that it would have."""
        uuid = request.instance_uuid(self._keys.prefix, self._new_uuid)
        self._refuse_oversized(request, uuid)
        return BatchSet(request, {uuid: request})

    def _planned(self, request: Request, uuid: UUID, option: Option, live: Live, search: Search) -> Planned:
        candidate, provider = option
        alternates = live.alternates(search.group, but=[provider])
        spec = self._spec(
            request, uuid, Holding(uuid, candidate.allocations, made_here=False), alternates, search.wiring.wired()
        )
        joins = grouping.keys_to_read(self._keys, search.group, [provider])[:1]
        keys = (*self._puts(spec, provider), *joins)
        is_named = request.uuid is not None or request.request_id is not None
        return Planned(spec, provider, live.hosts[provider], tuple(live.hosts[a.provider] for a in alternates), keys, is_named)


def dry_run(session: Session, options: argparse.Namespace, request: Request) -> int:
    """Say what *request* would come to; 0 where there is room.

    Raises:
        EcomputeError: as ``Rehearsal.plan``.
    """
    planned, there = planner_of(session, Rehearsal).plan(request)
    is_set = request.count > 1
    emit(
        session.screen,
        options,
        lambda: [planned_json(one) for one in planned] if is_set or not planned else planned_json(planned[0]),
        lambda _: "\n".join(block(_pairs(one)) for one in planned),
    )
    if there:
        session.screen.message(f"{there} of {request.count} are there already, from this same request")
    session.screen.message("a dry run: nothing was claimed, and nothing written")
    return 0


def _pairs(one: Planned) -> list[tuple[str, str]]:
    spec = one.spec
    return [
        ("name", spec.name),
        ("host", f"{one.host} (provider {one.provider})"),
        ("else", ", ".join(one.others)),
        ("claims", describe(spec.resources)),
        ("image", f"{spec.image.name} ({spec.image.url})" if spec.image.name else spec.image.url),
        ("networks", "; ".join(cards.nic_text(nic) for nic in spec.nics)),
        *(("writes", key) for key in _shown(one)),
    ]


def _shown(one: Planned) -> Sequence[str]:
    """The keys as people are to read them: a uuid that is made anew each time says nothing."""
    return one.keys if one.is_named else [key.replace(str(one.spec.uuid), "UUID") for key in one.keys]


def planned_json(one: Planned) -> dict[str, Any]:
    """The shape is documented in ``docs/json``: fields are added, never renamed."""
    return {
        "name": one.spec.name, "uuid": str(one.spec.uuid), "host": one.host, "provider": str(one.provider),
        "others": list(one.others), "keys": list(one.keys), "spec": json.loads(one.spec.to_json()),
    }  # fmt: skip
