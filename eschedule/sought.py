"""An instance that has not the name somebody typed: the beginning of its uuid was meant, or a name that is near.

Asked only where the name itself leads nowhere, so that what is right costs one read.
"""

from __future__ import annotations

import re
from uuid import UUID

from common.errors import ConfigError, Permanent
from common.keys import Keys
from common.store import Store
from common.text import nearest

NOT_FOUND = "NotFound"
SHOWN_AT_MOST = 5
_BEGINNING = re.compile(r"[0-9a-f]{6,8}|[0-9a-f]{8}-[0-9a-f-]{0,26}")  # fewer digits would too often be met by a mistyped name


def meant(store: Store, keys: Keys, text: str) -> UUID:
    """The uuid that begins with *text*, which is no instance's name.

    Raises:
        ConfigError: several do.
        Permanent: none does; the text names an instance whose name is near.
    """
    if _BEGINNING.fullmatch(text):
        found = [UUID(item.key.removeprefix(keys.instances())) for item in store.list(keys.instances() + text).items]
        if len(found) > 1:
            shown = ", ".join(map(str, sorted(found)[:SHOWN_AT_MOST])) + (", …" if len(found) > SHOWN_AT_MOST else "")
            raise ConfigError(f"{len(found)} instances have a uuid that begins with {text}: {shown}; say more of it")
        if found:
            return found[0]
    names = [item.key.removeprefix(keys.names()) for item in store.list(keys.names(), serializable=True).items]
    near = nearest(text, names)
    raise no_such(text, near)


def no_such(who: UUID | str, near: str | None = None) -> Permanent:
    hint = f"did you mean {near}?" if near else "see: eschedule list"
    return Permanent(f"there is no instance {who}; {hint}", NOT_FOUND)
