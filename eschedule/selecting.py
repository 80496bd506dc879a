"""Which instances a selector (``-l app=web``) chooses: one paged read of all specs. Prints nothing but a warning.

``main`` calls it before the verb runs, so that every verb that takes several instances takes a selector as well.
"""

from __future__ import annotations

import argparse
import json

from common.errors import EcomputeError
from common.model import Desired, InstanceSpec
from common.text import counted
from eschedule.labels import Selector, parse_selector
from eschedule.listing import NOT_LISTED
from eschedule.looking import no_match
from eschedule.session import Session

_ALSO_ENDING = ("destroy", "show")  # to wait for the end of what somebody else destroys, and to look at it


def resolve(session: Session, options: argparse.Namespace) -> None:
    """Put the uuids of those that ``-l`` chooses into ``options.instances``, in the order of their names.

    Raises:
        ConfigError: the selector is none.
        Permanent: it chooses nothing.
        StoreUnavailable: etcd did not answer.
    """
    found = _chosen(session, parse_selector(options.selector), with_ending=options.command in _ALSO_ENDING)
    if not found:
        raise no_match(options.selector)
    options.instances = [str(spec.uuid) for spec in found]


def _chosen(session: Session, selector: Selector, *, with_ending: bool) -> list[InstanceSpec]:
    found, unreadable = list[InstanceSpec](), 0
    for item in session.store.list(session.keys.specs()).items:
        try:
            spec = InstanceSpec.from_json(item.value, without=NOT_LISTED)
        except EcomputeError:
            unreadable += _may_match(item.value, selector)
            continue
        if selector.takes(spec.labels) and (with_ending or spec.desired is not Desired.DELETED):
            found.append(spec)
    if unreadable:
        session.screen.warning(
            f"{counted(unreadable, 'instance')} of a newer version, which this one leaves alone, may have such labels, too"
        )
    return sorted(found, key=lambda spec: spec.name)


def _may_match(text: str, selector: Selector) -> bool:
    """Whether what cannot be read as a spec has such labels, as far as can be seen."""
    try:
        labels = json.loads(text).get("labels", {})
        return selector.takes(labels)
    except (ValueError, AttributeError):
        return True
