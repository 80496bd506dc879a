"""Cards on bridges: what each gets, and what is believed of the addresses that guests say they have."""

from __future__ import annotations

import dataclasses
from uuid import UUID

import pytest

from common.errors import InvalidSpec, Permanent
from common.nics import Address, AddressSource, IpAddress, Nic, computed_mac
from ecompute.bridge_cards import bridge_address, fixed_ipv4, with_learned, with_second_card, without_addresses

ONE = UUID("11111111-1111-4111-8111-111111111111")
V4, V6 = IpAddress("10.0.0.5", 24, "10.0.0.1"), IpAddress("fd00:1::5", 64, "fd00:1::1")
FOREIGN = bridge_address(Nic("", bridge="br0"), ONE, 1, ())
MAC = FOREIGN.mac


def test_a_pooled_card_has_what_the_request_says() -> None:
    nic = Nic("lan", "br0", 42, "52:54:AA:00:00:01", (V4, V6), ("9.9.9.9",), 9000)
    assert bridge_address(nic, ONE, 0, ()) == Address(
        "lan", "52:54:aa:00:00:01", "10.0.0.5", 24, "10.0.0.1", more=(V6,), bridge="br0", vlan=42,
        source=AddressSource.STATIC, name_servers=("9.9.9.9",), mtu=9000,
    )  # fmt: skip


def test_a_card_without_addresses_has_a_mac_that_stays() -> None:
    assert Address("", computed_mac(str(ONE), "1"), "", 0, bridge="br0", source=AddressSource.NONE) == FOREIGN


def test_no_mac_is_given_twice_on_a_host() -> None:
    second = bridge_address(Nic("", bridge="br0"), ONE, 1, {MAC})
    third = bridge_address(Nic("", bridge="br0"), ONE, 1, {MAC, second.mac})
    assert len({MAC, second.mac, third.mac}) == 3
    with pytest.raises(Permanent, match="52:54:00:00:00:01") as caught:
        bridge_address(Nic("", bridge="br0", mac="52:54:00:00:00:01"), ONE, 1, {"52:54:00:00:00:01"})
    assert caught.value.reason == "MacTaken"


@pytest.mark.parametrize(
    ("nics", "expected"),
    [
        ((Nic(),), (Nic(), Nic("", bridge="br0"))),
        ((Nic("lab"),), (Nic("lab"), Nic("", bridge="br0"))),
        ((Nic(), Nic("lab")), (Nic(), Nic("lab"))),
        ((Nic("", bridge="br1"),), (Nic("", bridge="br1"),)),
        ((Nic(addresses=(V4,)),), (Nic(addresses=(V4,)),)),
        ((), ()),
    ],
)
def test_a_second_card_is_for_guests_that_asked_for_none(nics: tuple[Nic, ...], expected: tuple[Nic, ...]) -> None:
    assert with_second_card(nics, "br0") == expected
    assert with_second_card(nics, None) == nics


def test_a_libvirt_network_gives_one_fixed_address_of_ipv4() -> None:
    assert fixed_ipv4(Nic()) == ""
    assert fixed_ipv4(Nic(addresses=(V4,))) == "10.0.0.5"
    for addresses in ((V6,), (V4, V6)):
        with pytest.raises(InvalidSpec, match="libvirt network default"):
            fixed_ipv4(Nic(addresses=addresses))


class TestLearned:
    def learned(self, card: Address, *seen: str, taken: tuple[str, ...] = ()) -> Address:
        return with_learned((card,), {MAC: tuple(IpAddress(one, 24) for one in seen)}, taken)[0]

    def test_what_is_seen_is_noted_ipv4_first(self) -> None:
        card = self.learned(FOREIGN, "fd00::9", "10.9.0.7")
        assert (card.all_addresses, card.source, card.mac) == (("10.9.0.7", "fd00::9"), AddressSource.LEARNED, MAC)

    def test_a_new_lease_replaces_the_old_one_and_silence_changes_nothing(self) -> None:
        card = self.learned(FOREIGN, "10.9.0.7")
        assert self.learned(card) == card
        assert self.learned(card, "10.9.0.8").all_addresses == ("10.9.0.8",)

    def test_no_guest_is_believed_that_it_has_anothers_address(self) -> None:
        assert self.learned(FOREIGN, "10.9.0.7", taken=("10.9.0.7",)) == FOREIGN
        card = self.learned(FOREIGN, "10.9.0.7", "10.9.0.8")
        assert without_addresses(card, ("10.9.0.7",)).all_addresses == ("10.9.0.8",)
        assert without_addresses(without_addresses(card, ("10.9.0.7",)), ("10.9.0.8",)) == FOREIGN
        assert self.learned(card, taken=("10.9.0.7",)).all_addresses == ("10.9.0.8",)

    def test_only_cards_that_somebody_else_serves_learn(self) -> None:
        for card in (
            Address("default", MAC, "192.168.122.5"),
            dataclasses.replace(FOREIGN, address="10.0.0.5", source=AddressSource.STATIC),
        ):
            assert self.learned(card, "10.9.0.7") == card

    def test_a_guest_with_a_thousand_addresses_is_not_noted_with_all(self) -> None:
        assert len(self.learned(FOREIGN, *(f"10.9.{i}.7" for i in range(200))).all_addresses) == 8
