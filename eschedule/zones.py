"""Zones: what hosts with the same label ``zone`` are (``eschedule host label node1 zone=a``), and how requests ask for one.

A label is for people alone; so with this one goes a trait, which Placement can be asked for. Operators set the label,
``host_admin`` keeps the trait beside it, and the host's daemon brings it to Placement as it does with all of theirs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from common.errors import Permanent
from common.keys import Keys
from common.model import HostAdmin
from common.store import Store
from common.text import nearest, quoted
from eschedule.listing import read_record

LABEL = "zone"
TRAITS = "CUSTOM_ZONE_"


def zone_trait(zone: str) -> str:
    """The trait by which Placement knows the hosts of *zone*; names that differ in case or punctuation alone have the same."""
    return TRAITS + re.sub(r"[^A-Z0-9]", "_", zone.upper())


def traits_of(labels: Mapping[str, str]) -> set[str]:
    """The traits that go with *labels*."""
    return {zone_trait(zone)} if (zone := labels.get(LABEL)) else set()


def known_zone(store: Store, keys: Keys, zone: str) -> str:
    """*zone*, where a host is in it.

    Raises:
        Permanent: none is.
    """
    admins = (read_record(HostAdmin, item) for item in store.list(keys.host_admins()).items)
    zones = {name for admin in admins if admin and (name := admin.labels.get(LABEL))}
    if zone not in zones:
        near = nearest(zone, zones)
        there = f"there are {', '.join(sorted(zones))}" if zones else "no host is in any"
        hint = f"did you mean {near}?" if near else f"{there}; a host is put into one by: eschedule host label HOST zone=NAME"
        raise Permanent(f"there is no zone {quoted(zone)}; {hint}", "NotFound")
    return zone
