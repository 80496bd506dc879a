"""The command ``rename``: another name for an instance, in one transaction; the guest itself is told nothing new.

As in OpenStack the name is what people and this program call it, and the guest's host name is the guest's own: it stays, and
so do the domain's name at libvirt, addresses and DHCP, none of which go by the name.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from common.errors import Conflict
from common.journal import Act, former_name
from common.keys import Keys
from common.model import Desired, spec_with_fields, with_fields
from common.retry import Backoff
from common.store import Compare, Store, Transaction, Versioned
from common.validate import parse_instance, parse_name
from eschedule.acts import noted
from eschedule.changes import TRIES, Instance, find, is_adoption_over, read
from eschedule.session import Session
from eschedule.sought import no_such


@dataclass(frozen=True)
class Renamed:
    """What came of it: the names before and now, and what the guest calls itself."""

    before: str
    now: str
    hostname: str


def rename(session: Session, options: argparse.Namespace) -> int:
    """Run ``rename``; its exit code."""
    who, name = parse_instance(options.instance), parse_name(options.name, "the new name")
    instance = find(session.store, session.keys, who)
    session.interruption.check()
    with session.interruption.shield():
        renamed = give_name(session.store, session.keys, instance, name, who=who, act=session.act)
    if renamed.before == name:
        session.screen.message(f"{name} is its name already")
    else:
        own = "" if renamed.hostname == name else f"; the guest still calls itself {renamed.hostname}"
        session.screen.message(f"{renamed.before} ({instance}) is {name} now{own}")
    session.interruption.check()
    return 0


def give_name(
    store: Store, keys: Keys, instance: UUID, name: str, *, who: UUID | str | None = None, act: Act | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Renamed:  # fmt: skip
    """Have *instance* called *name*; a repeat changes nothing.

    Raises:
        Permanent: it is not there.
        Conflict: the name is another's, the instance is being destroyed, or others kept changing it.
        StoreUnavailable: whether it was done is unknown; repeating it is safe.
    """
    backoff, before = Backoff(0.02, 0.5), ""
    for _ in range(TRIES):
        found = read(store, keys, instance, who)
        spec, before = found.spec, before or found.name
        hostname = spec.hostname or before
        if spec.desired is Desired.DELETED:
            raise Conflict(f"the instance {spec.name} is being destroyed; see: eschedule show {spec.name}")
        current = store.get_many({keys.instance(instance), keys.name(name), keys.name(spec.name)})
        if keys.instance(instance) not in current:
            raise no_such(who or instance)
        taken = current.get(keys.name(name))
        if taken is not None and taken.value != str(instance):
            raise Conflict(f"the name {name} belongs to the instance {taken.value}; see: eschedule show {name}")
        if found.name == spec.name == name and taken is not None:
            return Renamed(before, name, hostname)
        fields = {"name": name, "hostname": hostname, **({"adopts": None} if is_adoption_over(found) else {})}
        try:
            store.commit(_transaction(keys, found, current, fields, act))
        except Conflict:
            sleep(backoff.next())
        else:
            return Renamed(before, name, hostname)
    raise Conflict(f"the instance {who or instance} kept being changed by others; try again")


def _transaction(
    keys: Keys, found: Instance, current: Mapping[str, Versioned], fields: Mapping[str, Any], act: Act | None
) -> Transaction:  # fmt: skip
    """Spec, place and name at once, where all are as they were read; its former name is free then."""
    place, new_key, old_key = keys.instance(found.uuid), keys.name(fields["name"]), keys.name(found.spec.name)
    compares = [Compare.as_read(key, current) for key in dict.fromkeys((place, new_key, old_key))]
    compares.append(Compare.unchanged(found.spec_item.key, found.spec_item.mod_revision))
    changed, notes = noted(keys, act, found, fields, message=f"it was {found.spec.name}")
    puts = {
        found.spec_item.key: spec_with_fields(found.spec_item.value, changed),
        place: with_fields(current[place].value, {"name": fields["name"]}),
        new_key: str(found.uuid),
    }
    is_own = old_key != new_key and old_key in current and current[old_key].value == str(found.uuid)
    if act is not None:
        notes |= former_name(keys, found.spec.name, found.uuid)
    return Transaction(tuple(compares), puts, (old_key,) if is_own else (), notes=notes)
