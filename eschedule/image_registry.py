"""The registry of images in etcd: names for addresses with checksums. Usable as a library; prints nothing.

A name is created, read and removed, never changed: what it means to one it means to all for as long as it is there.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from common.errors import Conflict, EcomputeError, InvalidSpec, Permanent, UnsupportedSchema
from common.image_records import ImageRecord
from common.keys import Keys
from common.store import Store, Versioned
from common.text import nearest
from eschedule.removal import TRIES, remove_seen


@dataclass(frozen=True)
class ImageRow:
    """A name and its image; *record* is None where it cannot be read, which *problem* tells."""

    name: str
    record: ImageRecord | None
    problem: str = ""


def add(store: Store, keys: Keys, record: ImageRecord) -> bool:
    """Register *record*; False where it is there already, just so.

    Raises:
        Conflict: the name is another image's.
        StoreUnavailable: whether it is registered is unknown; repeating it is safe.
    """
    key = keys.image(record.name)
    for _ in range(TRIES):
        there = store.get(key)
        if there is not None:
            if _is_same(there, record):
                return False
            raise Conflict(
                f"there is an image {record.name} already, and it is another; see: eschedule image show {record.name}; "
                f"take another name, or remove it first: eschedule image rm {record.name}"
            )
        try:
            store.create(key, record.to_json())
        except Conflict:
            continue
        return True
    raise Conflict(f"others kept adding and removing the image {record.name}; try again")


def _is_same(there: Versioned, record: ImageRecord) -> bool:
    """Whether *there* is *record*, whoever registered it when and by which list; what cannot be read is something else."""
    try:
        known = ImageRecord.from_json(there.value)
    except (InvalidSpec, UnsupportedSchema):
        return False
    for_people = {name: getattr(record, name) for name in ("checksum_url", "created_at", "created_by")}
    return dataclasses.replace(known, **for_people) == record


def listed(store: Store, keys: Keys) -> list[ImageRow]:
    """All images, by name."""
    rows = []
    for item in store.list(keys.images(), serializable=True).items:
        name, record, problem = item.key.removeprefix(keys.images()), None, ""
        try:
            record = ImageRecord.from_json(item.value)
        except EcomputeError as error:
            problem = str(error)
        rows.append(ImageRow(name, record, problem))
    return sorted(rows, key=lambda row: row.name)


def registered(store: Store, keys: Keys, name: str) -> ImageRecord:
    """The image *name*.

    Raises:
        Permanent: there is none, or it cannot be read.
    """
    item = _item(store, keys, name)
    try:
        return ImageRecord.from_json(item.value)
    except (InvalidSpec, UnsupportedSchema) as error:
        raise Permanent(
            f"the image {name} cannot be read: {error}; where no newer version wrote it, remove it: eschedule image rm {name}",
            "UnreadableImage",
        ) from error


def remove(store: Store, keys: Keys, name: str) -> None:
    """Forget the image *name*, readable or not. Whoever has copied what it says keeps that.

    Raises:
        Permanent: there is none.
        Conflict: others kept changing it.
        StoreUnavailable: whether it was removed is unknown; repeating it is safe.
    """
    remove_seen(store, lambda: _item(store, keys, name), f"others kept changing the image {name}; try again")


def _item(store: Store, keys: Keys, name: str) -> Versioned:
    item = store.get(keys.image(name))
    if item is not None:
        return item
    items = store.list(keys.images(), serializable=True).items
    near = nearest(name, [item.key.removeprefix(keys.images()) for item in items])
    hint = f"did you mean {near}? All: eschedule image list" if near else "see: eschedule image list"
    raise Permanent(f"there is no image {name}; {hint}", "NotFound")
