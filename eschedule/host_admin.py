"""What operators set for a host: whether it takes new guests, extra traits, labels. Usable as a library; it prints nothing.

It stands under ``host-admin/<provider>`` and outlives the host's daemon, which alone writes the traits of its provider; so
whoever changes them here waits until Placement has them (``in_force``).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from uuid import UUID

from common.errors import ConfigError, Conflict, Transient
from common.journal import Act
from common.keys import Keys
from common.model import HostAdmin, with_fields
from common.placement import Placement
from common.placement_types import DISABLED_TRAIT, OWNER_TRAIT
from common.retry import Backoff, Deadline, retry
from common.store import Store
from common.text import quoted
from eschedule import zones
from eschedule.labels import few_enough

Edit = Callable[[HostAdmin], HostAdmin]
TRIES = 20
_TRAIT = re.compile(r"[A-Z0-9_]{1,255}")
_OURS = {DISABLED_TRAIT: "use: eschedule host disable", OWNER_TRAIT: "it says that a host is of etcd-compute"}


def change(
    store: Store, keys: Keys, provider: UUID, edit: Edit, *, act: Act | None = None, name: str = "", message: str = ""
) -> tuple[HostAdmin, bool]:
    """Apply *edit* to what is set for the host of *provider*; what is set then, and whether anything had to be written.

    Args:
        act: the command that wants it, for the journal, with the host's *name* and a *message* for people.

    Raises:
        Conflict: others kept changing it.
        StoreUnavailable: whether it was changed is unknown; repeating it is safe.
        UnsupportedSchema: a newer version wrote it.
    """
    key = keys.host_admin(provider)
    for _ in range(TRIES):
        item = store.get(key)
        current = HostAdmin.from_json(item.value) if item else HostAdmin()
        wanted = edit(current)
        if wanted == current:
            return current, False
        notes = act.on_host(keys, provider, name, current.acts, message) if act else {}
        wanted = dataclasses.replace(wanted, acts=current.acts + 1) if act else wanted
        try:
            if item is None:
                store.create(key, wanted.to_json(), notes=notes)
            else:
                store.replace(key, with_fields(item.value, _fields(wanted)), seen=item.mod_revision, notes=notes)
        except Conflict:
            continue
        return wanted, True
    raise Conflict("others kept changing what is set for this host; try again")


def in_force(placement: Placement, provider: UUID, admin: HostAdmin, deadline: Deadline) -> None:
    """Wait until Placement has the traits of the host as *admin* says.

    Raises:
        Transient: it had not when *deadline* was over; the host goes on with it.
    """

    def look() -> None:
        traits = placement.traits(provider)
        missing = set(admin.traits) - traits
        if (DISABLED_TRAIT in traits) != admin.disabled or missing:
            raise Transient(f"Placement does not have it yet{f' ({_joined(missing)})' if missing else ''}")

    retry(look, on=Transient, deadline=deadline, backoff=Backoff(0.05, 1.0))


# -- edits, pure ---------------------------------------------------------------------------------------------------------


def disabled(*, reason: str, by: str, at: str) -> Edit:
    def edit(admin: HostAdmin) -> HostAdmin:
        if admin.disabled and reason in ("", admin.reason):
            return admin
        return dataclasses.replace(admin, disabled=True, reason=reason, by=by, since=at)

    return edit


def enabled(*, by: str, at: str) -> Edit:
    def edit(admin: HostAdmin) -> HostAdmin:
        return dataclasses.replace(admin, disabled=False, reason="", by=by, since=at) if admin.disabled else admin

    return edit


def with_traits(add: Collection[str], remove: Collection[str]) -> Edit:
    def edit(admin: HostAdmin) -> HostAdmin:
        return dataclasses.replace(admin, traits=tuple(sorted((set(admin.traits) | set(add)) - set(remove))))

    return edit


def with_labels(add: Mapping[str, str], remove: Collection[str]) -> Edit:
    """The edit of labels, and of the trait that goes with the label ``zone``. Raises (the edit): ConfigError: too many."""

    def edit(admin: HostAdmin) -> HostAdmin:
        labels = {name: value for name, value in sorted({**admin.labels, **add}.items()) if name not in remove}
        others = (trait for trait in admin.traits if not trait.startswith(zones.TRAITS))
        traits = tuple(sorted({*others, *zones.traits_of(labels)}))
        return dataclasses.replace(admin, labels=dict(few_enough(labels, "a host")), traits=traits)

    return edit


# -- what was typed, pure ------------------------------------------------------------------------------------------------


def parse_trait(text: str) -> str:
    """Raises: ConfigError: it is no trait, or not for operators."""
    if text in _OURS:
        raise ConfigError(f"the trait {text} is not for operators: {_OURS[text]}")
    if text.startswith(zones.TRAITS):
        raise ConfigError(f"the trait {text} goes with a label; use: eschedule host label HOST {zones.LABEL}=NAME")
    if not _TRAIT.fullmatch(text):
        raise ConfigError(f"{quoted(text)} is no trait: A-Z, 0-9 and _, at most 255; own ones begin with CUSTOM_")
    return text


def _fields(admin: HostAdmin) -> dict[str, object]:
    return {field.name: getattr(admin, field.name) for field in dataclasses.fields(admin)}


def _joined(names: Collection[str]) -> str:
    return ", ".join(sorted(names))
