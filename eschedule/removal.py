"""Removes one key of etcd as it was seen, and looks again where somebody else changed it meanwhile."""

from __future__ import annotations

from collections.abc import Callable

from common.errors import Conflict
from common.store import Store, Versioned

TRIES = 10  # of any change, while others change the same key


def remove_seen(store: Store, find: Callable[[], Versioned], in_vain: str) -> None:
    """Delete the item that *find* finds.

    Args:
        in_vain: what to say when others changed it at each try.

    Raises:
        Conflict: they did.
        EcomputeError: as *find*, such as that there is none.
        StoreUnavailable: whether it was removed is unknown; repeating it is safe.
    """
    for _ in range(TRIES):
        item = find()
        try:
            store.delete(item.key, seen=item.mod_revision)
        except Conflict:
            continue
        return
    raise Conflict(in_vain)
