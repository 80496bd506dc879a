"""Finding an instance by name or uuid, and changing what its spec asks for. Usable as a library; prints nothing.

A change is a compare-and-swap on the spec as it was read, tried again when the spec changed or moved meanwhile. Only the
fields in question are changed in the JSON that is there, so that fields of a newer version survive.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from common.errors import ConfigError, Conflict, EcomputeError, Permanent
from common.journal import Act
from common.keys import Keys
from common.model import Desired, Forward, InstanceKey, InstanceSpec, InstanceStatus, Phase, spec_with_fields
from common.retry import Backoff
from common.store import Store, Versioned
from common.validate_access import check_forwards
from eschedule.acts import noted
from eschedule.request import SPEC_BYTES_AT_MOST
from eschedule.sought import NOT_FOUND, meant, no_such

TRIES = 10  # of a change while others change the same spec


@dataclass(frozen=True)
class Instance:
    """An instance as its keys were read; *host* is the item of its host key, None while that has no heartbeat."""

    uuid: UUID
    name: str
    provider: UUID
    spec_item: Versioned
    status_item: Versioned | None
    host: Versioned | None

    @property
    def spec(self) -> InstanceSpec:
        return InstanceSpec.from_json(self.spec_item.value)

    @property
    def status(self) -> InstanceStatus | None:
        return InstanceStatus.from_json(self.status_item.value) if self.status_item else None


Edit = Callable[[InstanceSpec, InstanceStatus | None], Mapping[str, Any] | None]


def find(store: Store, keys: Keys, who: UUID | str) -> UUID:
    """The uuid of the instance that has the name or uuid *who*, or whose uuid alone begins so.

    Raises:
        Permanent: there is none.
        ConfigError: the uuids of several begin so.
    """
    if isinstance(who, UUID):
        return who
    item = store.get(keys.name(who))
    return meant(store, keys, who) if item is None else UUID(item.value)


def read(store: Store, keys: Keys, instance: UUID, who: UUID | str | None = None) -> Instance:
    """*instance* as it is now; *who* is what the user called it.

    Raises:
        Permanent: it is not there.
        UnsupportedSchema: a newer version wrote it.
    """
    for _ in range(TRIES):  # a move between the two reads is seen as a spec that is not there
        place = store.get(keys.instance(instance))
        if place is None:
            raise no_such(who or instance)
        known = InstanceKey.from_json(place.value)
        wanted = keys.spec(known.provider, instance), keys.status(known.provider, instance), keys.host(known.provider)
        items = store.get_many(wanted)
        if wanted[0] in items:
            spec, status, host = (items.get(key) for key in wanted)
            assert spec is not None  # noqa: S101 - just looked
            return Instance(instance, known.name, known.provider, spec, status, host)
    key = keys.instance(instance)
    raise Permanent(f"{key} is there, but the spec that it points to is missing; see: eschedule audit", "Damaged")


def change(
    store: Store, keys: Keys, instance: UUID, edit: Edit, *, who: UUID | str | None = None, seen: int | None = None,
    act: Act | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[Instance, bool]:  # fmt: skip
    """Apply *edit* to the spec of *instance*; the instance as it was read, and whether anything had to be written.

    An instance that goes while it is asked to is as asked: perhaps by this very write, whose answer was lost.

    Args:
        edit: from the spec and the status of the moment the fields to set, None where all is as wanted.
        seen: the revision that the spec is to have still; None for any.
        act: the command that wants it, for the journal.

    Raises:
        Permanent: it is not there.
        Conflict: *edit* refuses it, or others kept changing the spec.
        StoreUnavailable: whether the change was made is unknown; repeating it is safe.
    """
    backoff = Backoff(0.02, 0.5)
    found: Instance | None = None
    for _ in range(TRIES):
        try:
            found = read(store, keys, instance, who)
        except Permanent as error:
            if found is None or edit is not destroyed or error.reason != NOT_FOUND:
                raise
            return found, True
        check_unchanged(found, seen)
        fields = edit(found.spec, found.status)
        if fields is None:
            return found, False
        if is_adoption_over(found):
            fields = {**fields, "adopts": None}
        try:
            wanted, notes = noted(keys, act, found, fields)
            text = spec_with_fields(found.spec_item.value, wanted)
            store.replace(found.spec_item.key, text, seen=found.spec_item.mod_revision, notes=notes)
        except Conflict:
            sleep(backoff.next())
        else:
            return found, True
    raise Conflict(f"the instance {who or instance} kept being changed by others; try again")


def check_unchanged(found: Instance, seen: int | None) -> None:
    """Raises: Conflict: the spec has another revision than was *seen*."""
    if seen is not None and found.spec_item.mod_revision != seen:
        raise Conflict(
            f"{found.name} was changed by somebody else meanwhile; nothing was changed; look: eschedule show {found.name}"
        )


def is_adoption_over(found: Instance) -> bool:
    """Whether the host has done what the mark of an adoption asks for: it is to mean nothing for a later stamp."""
    status = found.status
    is_fresh = status is not None and status.spec_revision >= found.spec_item.mod_revision
    return found.spec.adopts is not None and status is not None and is_fresh and status.phase is not Phase.HELD


def notes_in(item: Versioned | None) -> str:
    """What the status *item* says that is not as asked for, in one line; "" where it says nothing."""
    try:
        return "; ".join(InstanceStatus.from_json(item.value).notes) if item else ""
    except EcomputeError:
        return ""


def destroyed(spec: InstanceSpec, _status: InstanceStatus | None) -> Mapping[str, Any] | None:
    """The edit that asks for the end of an instance."""
    if spec.desired is Desired.DELETED:
        return None
    refuse_protected(spec, "destroyed")
    return {"desired": Desired.DELETED.value}


def refuse_protected(spec: InstanceSpec, what: str) -> None:
    """Raises: Conflict: *spec* is protected, and is not to be *what*."""
    if spec.protected:
        raise Conflict(f"{spec.name} is protected, and not {what}; take that back first: eschedule unprotect {spec.name}")


def stopped(spec: InstanceSpec, _status: InstanceStatus | None) -> Mapping[str, Any] | None:
    """The edit that asks for a shut down guest."""
    _refuse_deleted(spec)
    return None if spec.desired is Desired.STOPPED else {"desired": Desired.STOPPED.value}


def powered_off(spec: InstanceSpec, _status: InstanceStatus | None) -> Mapping[str, Any] | None:
    """The edit that asks for a guest without power, at once: also of one that is being shut down."""
    _refuse_deleted(spec)
    return None if spec.is_hard_stop else {"desired": Desired.STOPPED.value, "hard_stop_request": spec.boot_request}


def started(spec: InstanceSpec, status: InstanceStatus | None) -> Mapping[str, Any] | None:
    """The edit that asks for a running guest: a new boot request, unless one is under way or the guest is up.

    One that stands still goes on as it is.
    """
    _refuse_deleted(spec)
    at_rest = status is not None and status.phase in (Phase.STOPPED, Phase.FAILED, Phase.REFUSED)
    if spec.desired.keeps_guest and not at_rest:
        return None if spec.desired is Desired.RUNNING else {"desired": Desired.RUNNING.value}
    number = spec.boot_request + 1
    fields: dict[str, Any] = {"desired": Desired.RUNNING.value, "boot_request": number}
    if spec.desired is Desired.STOPPED:
        # It may be on its way down, and nothing calls that back: it is to come up once it is off, as in a reboot.
        fields |= {"reboot_request": number, "hard_reboot": False}
    return fields


def rebooted(*, hard: bool) -> Edit:
    """The edit that asks for another boot: of a guest that is up after it was shut down, with *hard* without asking it."""

    def edit(spec: InstanceSpec, _status: InstanceStatus | None) -> Mapping[str, Any]:
        _refuse_deleted(spec)
        number = spec.boot_request + 1
        return {
            "desired": Desired.RUNNING.value, "boot_request": number, "reboot_request": number, "hard_reboot": hard,
        }  # fmt: skip

    return edit


def set_to(wanted: Mapping[str, Any]) -> Edit:
    """The edit that sets the fields *wanted*, none of which asks for a boot.

    Raises (the edit):
        ConfigError: with them the spec is larger than etcd is to keep.
    """

    def edit(spec: InstanceSpec, _status: InstanceStatus | None) -> Mapping[str, Any] | None:
        _refuse_deleted(spec)
        fields = {name: value for name, value in wanted.items() if getattr(spec, name) != value}
        size = len(dataclasses.replace(spec, **fields).to_json().encode())
        if fields and size > SPEC_BYTES_AT_MOST:
            raise ConfigError(
                f"{spec.name} would be {size} bytes, at most {SPEC_BYTES_AT_MOST} fit: fewer keys or less user data"
            )
        return fields or None

    return edit


def forwarding(add: Iterable[Forward], remove: Iterable[tuple[int, str]]) -> Edit:
    """The edit that has ports of the host lead to the guest: those of *add*, and those of *remove* (port, protocol) no more.

    Raises (the edit):
        Permanent: one to remove is not there.
        Conflict: one to add leads to another port of the guest already.
        ConfigError: they are too many.
    """

    def edit(spec: InstanceSpec, _status: InstanceStatus | None) -> Mapping[str, Any] | None:
        _refuse_deleted(spec)
        known = {(forward.host_port, forward.protocol): forward for forward in spec.forwards}
        for port, protocol in remove:
            if known.pop((port, protocol), None) is None:
                raise Permanent(f"port {port}/{protocol} does not lead to {spec.name}; see: eschedule port-forward {spec.name}")
        for forward in add:
            there = known.setdefault((forward.host_port, forward.protocol), forward)
            if there != forward:
                taken = f"{forward.host_port}/{forward.protocol}"
                raise Conflict(f"port {taken} leads to {there.guest_port} of {spec.name} already; take that away: --rm {taken}")
        forwards = check_forwards(known.values(), spec.name)
        return None if forwards == spec.forwards else {"forwards": forwards}

    return edit


def _refuse_deleted(spec: InstanceSpec) -> None:
    if spec.desired is Desired.DELETED:
        raise Conflict(f"the instance {spec.name} is being destroyed; see: eschedule show {spec.name}")
