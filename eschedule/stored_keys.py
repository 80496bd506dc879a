"""Public ssh keys that are kept in etcd under names. A request copies them, once. Usable as a library; prints nothing."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from common.errors import Conflict, InvalidSpec, Permanent, UnsupportedSchema
from common.keys import Keys
from common.model import KeyRecord
from common.store import Store, Versioned
from eschedule.removal import TRIES, remove_seen

if TYPE_CHECKING:
    from eschedule.session import Session


def look_up(session: Session, names: Collection[str]) -> Mapping[str, tuple[str, ...]]:
    """The keys of those of *names* that are kept, by one read."""
    by_key = {session.keys.ssh_key(name): name for name in names}
    found = session.store.get_many(by_key)
    return {by_key[key]: _record(item).keys for key, item in found.items()}


class Kept(enum.Enum):
    """What came of keeping keys under a name."""

    NEW = "new"
    REPLACED = "replaced"
    SO_ALREADY = "so already"  # the very same keys were there: nothing was written


def keep(store: Store, keys: Keys, record: KeyRecord, *, replace: bool) -> Kept:
    """Keep *record* under its name.

    Raises:
        Conflict: the name has keys already, and they are not to be replaced; or others kept changing it.
        StoreUnavailable: whether it is kept is unknown; repeating it is safe.
    """
    key, text = keys.ssh_key(record.name), record.to_json()
    for _ in range(TRIES):
        try:
            there = store.get(key) if replace else None
            if there is None:
                store.create(key, text)
            elif _has_just(there, record):
                return Kept.SO_ALREADY
            else:
                store.replace(key, text, seen=there.mod_revision)
        except Conflict:
            if not replace:
                if _has_just(store.get(key), record):
                    return Kept.SO_ALREADY
                raise Conflict(
                    f"the name {record.name} has keys already; see: eschedule key show {record.name}; "
                    "give --replace to put these in their place, or take another name"
                ) from None
        else:
            return Kept.NEW if there is None else Kept.REPLACED
    raise Conflict(f"the keys of {record.name} kept being changed by others; try again")


def _has_just(there: Versioned | None, record: KeyRecord) -> bool:
    """Whether *there* are the keys of *record*; what cannot be read is something else."""
    try:
        return there is not None and {*_record(there).keys} == {*record.keys}
    except Permanent:
        return False


def kept(store: Store, keys: Keys) -> list[KeyRecord]:
    """All that are kept, by name."""
    items = store.list(keys.ssh_keys(), serializable=True).items
    return sorted(map(_record, items), key=lambda record: record.name)


def one(store: Store, keys: Keys, name: str) -> KeyRecord:
    """What is kept under *name*.

    Raises:
        Permanent: nothing is.
    """
    return _record(_item(store, keys, name))


def drop(store: Store, keys: Keys, name: str) -> None:
    """Keep what is under *name* no more; who has copied it keeps it.

    Raises:
        Permanent: nothing is kept there.
        Conflict: others kept changing it.
    """
    remove_seen(store, lambda: _item(store, keys, name), f"the keys of {name} kept being changed by others; try again")


def _item(store: Store, keys: Keys, name: str) -> Versioned:
    item = store.get(keys.ssh_key(name))
    if item is None:
        raise Permanent(f"there are no keys under the name {name}; see: eschedule key list", "NotFound")
    return item


def _record(item: Versioned) -> KeyRecord:
    """The record in *item*.

    Raises:
        Permanent: it is none that this version reads.
    """
    try:
        return KeyRecord.from_json(item.value)
    except (InvalidSpec, UnsupportedSchema) as error:
        name = item.key.rpartition("/")[2]
        raise Permanent(f"the keys of {name} cannot be read: {error}; remove them: eschedule key rm {name}") from error
