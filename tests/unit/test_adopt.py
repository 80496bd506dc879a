"""A guest whose spec is older than itself, decided for the guest: its addresses are its own again, or somebody else's."""

from __future__ import annotations

import argparse
import dataclasses
import io
from uuid import uuid4

import pytest

from common.config import ScheduleConfig
from common.errors import Conflict
from common.findings import Finding, Kind
from common.keys import Keys
from common.model import Adoption, ImageRef, InstanceSpec
from common.nics import IpAddress, Nic
from common.store import Transaction
from eschedule.adopt import Adopted, Adopter
from eschedule.interruption import Interruption
from eschedule.screen import Screen
from eschedule.session import Session
from tests.fakes.store import FakeStore

KEYS = Keys()
PROVIDER, INSTANCE = uuid4(), uuid4()


def on_lan(address: str) -> tuple[Nic, ...]:
    return (Nic("lan", bridge="br0", addresses=(IpAddress(address, 24),)),)


SPEC = InstanceSpec(INSTANCE, "web", ImageRef("/srv/a.img"), {"VCPU": 1}, nics=on_lan("10.0.0.5"))
GUEST = dataclasses.replace(SPEC, nics=on_lan("10.0.0.6"), adopts=Adoption(7, 900))


@pytest.fixture
def store() -> FakeStore:
    """The spec of an old backup, by which the guest has .5; in truth it has .6."""
    store = FakeStore()
    puts = {KEYS.spec(PROVIDER, INSTANCE): SPEC.to_json(), KEYS.network_address("lan", "10.0.0.5"): str(INSTANCE)}
    store.commit(Transaction(puts=puts))
    return store


def decided_for_the_guest(store: FakeStore) -> Adopted:
    session = Session(ScheduleConfig(), Screen(output=io.StringIO(), errors=io.StringIO()), Interruption())
    session.__dict__["store"] = store
    finding = Finding(
        Kind.STORE_RESTORED, "node1", "", "", "", instance=INSTANCE, provider=PROVIDER, proposal=GUEST, name="web"
    )  # fmt: skip
    return Adopter(session)._decide(finding, argparse.Namespace(spec=False, domain=True))


def addresses(store: FakeStore) -> dict[str, str]:
    prefix = KEYS.network_addresses("lan")
    return {item.key.removeprefix(prefix): item.value for item in store.list(prefix).items}


def test_it_has_the_addresses_of_its_cards_and_no_others(store: FakeStore) -> None:
    spec, provider, revision = decided_for_the_guest(store)
    assert (spec.nics, provider) == (GUEST.nics, PROVIDER)
    assert addresses(store) == {"10.0.0.6": str(INSTANCE)}
    item = store.get(KEYS.spec(PROVIDER, INSTANCE))
    assert item is not None and (item.mod_revision, InstanceSpec.from_json(item.value)) == (revision, spec)


def test_an_address_that_was_given_away_since_is_not_taken_from_its_owner(store: FakeStore) -> None:
    other = str(uuid4())
    store.commit(Transaction(puts={KEYS.network_address("lan", "10.0.0.6"): other}))
    before = store.get(KEYS.spec(PROVIDER, INSTANCE))
    with pytest.raises(Conflict, match=f"10.0.0.6 of the network lan, which the guest has, was given to {other} since"):
        decided_for_the_guest(store)
    assert addresses(store) == {"10.0.0.5": str(INSTANCE), "10.0.0.6": other}
    assert store.get(KEYS.spec(PROVIDER, INSTANCE)) == before


def test_an_address_of_the_old_spec_that_is_somebody_elses_stays_so(store: FakeStore) -> None:
    other = str(uuid4())
    item = store.get(KEYS.network_address("lan", "10.0.0.5"))
    assert item is not None
    store.replace(item.key, other, seen=item.mod_revision)
    decided_for_the_guest(store)
    assert addresses(store) == {"10.0.0.5": other, "10.0.0.6": str(INSTANCE)}
