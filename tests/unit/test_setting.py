"""From when on what is changed of a living instance holds; and keys that are kept under names."""

from __future__ import annotations

import base64
import dataclasses
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from common.errors import Conflict, Permanent
from common.keys import Keys
from common.model import Address, ConfigDrive, ImageRef, InstanceSpec, KeyRecord, MetadataAccess, Nic
from eschedule import stored_keys
from eschedule.cards import drive_of, leads_to, unheard, untold
from eschedule.setting import effects
from eschedule.stored_keys import Kept
from tests.fakes.store import FakeStore

KEYS = Keys()
SPEC = InstanceSpec(UUID(int=1), "web", ImageRef("/x"), {"VCPU": 1})
AGAIN = "(eschedule reboot web)"
DHCP = Address("default", "52:54:00:00:00:01", "192.168.122.50")
AUTO, NONE, OPENSTACK, NOCLOUD = ConfigDrive.AUTO, ConfigDrive.NONE, ConfigDrive.OPENSTACK, ConfigDrive.NOCLOUD
OFF, REQUIRED = MetadataAccess.OFF, MetadataAccess.REQUIRED
ANSWERS = "the metadata service answers so from now on; cloud-init asks at its first boot only"


@pytest.mark.parametrize(
    ("former", "fields", "said"),
    [
        ({}, {"allow": ()}, ["rules: from now on"]),
        ({}, {"config_drive": NOCLOUD}, [f"config drive: nocloud, attached with its next start {AGAIN}"]),
        ({"config_drive": NOCLOUD}, {"config_drive": AUTO}, [f"config drive: taken away with its next start {AGAIN}"]),
        (
            {"config_drive": NOCLOUD},
            {"config_drive": OPENSTACK},
            [f"config drive: openstack, attached in place of nocloud with its next start {AGAIN}"],
        ),
        ({}, {"config_drive": NONE}, ["config drive: none, as before"]),
        ({"metadata": OFF}, {"config_drive": OPENSTACK}, ["config drive: openstack, as before"]),
        ({}, {"keys": ("k",), "user_data_base64": "eA=="}, [f"keys, user data: {ANSWERS}"]),
        (
            {"config_drive": OPENSTACK},
            {"keys": ("k",)},
            [f"keys: {ANSWERS}", f"keys: on its config drive from its next start on {AGAIN}"],
        ),
        ({"metadata": OFF}, {"keys": ("k",)}, [f"keys: on its config drive from its next start on {AGAIN}"]),
        (
            {},
            {"metadata": REQUIRED, "metadata_hop_limit": 2},
            ["metadata, hop limit: from now on", f"config drive: openstack, attached with its next start {AGAIN}"],
        ),
        ({"metadata": REQUIRED}, {"metadata": OFF}, ["metadata: from now on"]),
        ({"config_drive": OPENSTACK}, {"metadata": REQUIRED}, ["metadata: from now on"]),
        ({"config_drive": NONE}, {"metadata": REQUIRED}, ["metadata: from now on"]),
    ],
)
def test_what_holds_from_when_on(former: dict[str, Any], fields: dict[str, Any], said: list[str]) -> None:
    before = dataclasses.replace(SPEC, **former)
    assert effects(before, dataclasses.replace(before, **fields), frozenset(fields), (DHCP,), is_up=True) == said


def test_of_a_guest_that_is_down_everything_holds_from_its_next_start_on() -> None:
    fields: dict[str, Any] = {"keys": ("k",), "allow": ()}
    said = effects(SPEC, dataclasses.replace(SPEC, **fields), frozenset(fields), (DHCP,), is_up=False)
    assert said == ["keys, rules: from its next start on (eschedule start web)"]
    drive = dataclasses.replace(SPEC, config_drive=OPENSTACK)
    said = effects(SPEC, drive, frozenset({"config_drive"}), (DHCP,), is_up=False)
    assert said == ["config drive: openstack, attached with its next start (eschedule start web)"]


def test_who_has_a_drive_before_its_cards_are_known() -> None:
    on_bridge = dataclasses.replace(SPEC, nics=(Nic("", "br0"),))
    assert (drive_of(SPEC, ()), drive_of(on_bridge, ()), drive_of(on_bridge, (DHCP,))) == (None, OPENSTACK, None)


def test_what_reaches_nobody() -> None:
    assert untold(OFF, NONE, has_keys=True, has_user_data=True).startswith("its keys and user data will reach nobody")
    assert untold(OFF, NONE, has_keys=False, has_user_data=False) == ""
    assert (
        untold(OFF, AUTO, has_keys=True, has_user_data=False)
        == untold(REQUIRED, NONE, has_keys=True, has_user_data=False)
        == ""
    )


def test_a_guest_on_bridges_alone_is_told_by_whoever_serves_there() -> None:
    lan, own = Nic("", bridge="br0"), Nic("default")

    def doubt(
        nics: tuple[Nic, ...], drive: ConfigDrive = AUTO, access: MetadataAccess = REQUIRED, *, ready: bool = False
    ) -> str:
        return unheard(nics, access, drive, has_to_report=ready, is_told=True)

    assert doubt((lan,), ready=True).startswith("its report that it is ready needs a metadata service on br0")
    assert doubt((lan,), NONE).startswith("its keys and user data need a metadata service on br0")
    assert doubt((lan,)) == "", "it has them on a drive"
    assert doubt((lan, own), NONE, ready=True) == doubt((), NONE, ready=True) == doubt((lan,), NONE, OFF) == ""


def record(name: str, *keys: str) -> KeyRecord:
    blob = base64.b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes(32)).decode()
    return KeyRecord(name, tuple(f"ssh-ed25519 {blob} {key}" for key in keys), "2026-01-01T00:00:00Z", "me@here")


class TestStoredKeys:
    def test_what_is_kept_is_found_by_one_read(self) -> None:
        store = FakeStore()
        alice, bob = record("alice", "a"), record("bob", "b", "c")
        for one in (bob, alice):
            assert stored_keys.keep(store, KEYS, one, replace=False) is Kept.NEW
        session: Any = SimpleNamespace(store=store, keys=KEYS)
        assert stored_keys.look_up(session, ["alice", "carol", "bob"]) == {"alice": alice.keys, "bob": bob.keys}
        assert stored_keys.kept(store, KEYS) == [alice, bob]
        assert stored_keys.one(store, KEYS, "bob") == bob

    def test_a_name_is_only_taken_anew_where_that_is_asked_for(self) -> None:
        store = FakeStore()
        stored_keys.keep(store, KEYS, record("alice", "a"), replace=False)
        with pytest.raises(Conflict, match="the name alice has keys already; see: eschedule key show alice; give --replace"):
            stored_keys.keep(store, KEYS, record("alice", "b"), replace=False)
        later = dataclasses.replace(record("alice", "a"), created_at="2026-01-02T00:00:00Z")
        assert stored_keys.keep(store, KEYS, later, replace=False) is Kept.SO_ALREADY
        assert stored_keys.keep(store, KEYS, record("alice", "b"), replace=True) is Kept.REPLACED
        later = dataclasses.replace(record("alice", "b"), created_at="2026-01-02T00:00:00Z")
        assert stored_keys.keep(store, KEYS, later, replace=True) is Kept.SO_ALREADY
        assert stored_keys.one(store, KEYS, "alice") == record("alice", "b")
        assert stored_keys.keep(store, KEYS, record("bob", "b"), replace=True) is Kept.NEW

    def test_what_is_kept_no_more_is_gone(self) -> None:
        store = FakeStore()
        stored_keys.keep(store, KEYS, record("alice", "a"), replace=False)
        stored_keys.drop(store, KEYS, "alice")
        for action in (stored_keys.drop, stored_keys.one):
            with pytest.raises(Permanent, match="no keys under the name alice"):
                action(store, KEYS, "alice")
        assert stored_keys.kept(store, KEYS) == []

    def test_what_cannot_be_read_is_named(self) -> None:
        store = FakeStore()
        store.create(KEYS.ssh_key("alice"), '{"schema":1}')
        session: Any = SimpleNamespace(store=store, keys=KEYS)
        for action in (lambda: stored_keys.kept(store, KEYS), lambda: stored_keys.look_up(session, ["alice"])):
            with pytest.raises(
                Permanent, match=r"the keys of alice cannot be read: KeyRecord.*; remove them: eschedule key rm alice"
            ):
                action()
        stored_keys.drop(store, KEYS, "alice")


def test_where_a_port_leads_to() -> None:
    from common.model import Address, Forward

    assert leads_to(Forward(8080, 80), (Address("", "m", ""), Address("", "m", "10.0.0.7"))) == "10.0.0.7:80"
    assert leads_to(Forward(8080, 80), (Address("", "m", "fd00::7"),)) == "[fd00::7]:80"
    assert leads_to(Forward(8080, 80), ()) == "address not known yet, port 80"
