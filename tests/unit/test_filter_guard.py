"""Whether libvirt's own rules are in the kernel, and what is done where they are not."""

from __future__ import annotations

import dataclasses
import logging

import pytest

from common.errors import HypervisorUnavailable
from ecompute.anti_spoofing import DUAL_FILTER_NAME, FILTER_NAME
from ecompute.filter_guard import FilterGuard, Lost, guarded, lacks_nat
from tests.fakes.hypervisor import DEFAULT_NETWORK, FakeHypervisor
from tests.fakes.packet_filter import FakePacketFilter

NAT = dataclasses.replace(DEFAULT_NETWORK, is_nat=True)
NAT_RULES = """\
table ip nat {
	chain LIBVIRT_PRT {
		ip saddr 192.168.122.0/24 ip daddr 224.0.0.0/24 counter return
		ip saddr 192.168.122.0/24 ip daddr != 192.168.122.0/24 counter masquerade
	}
}
"""


def bridge_rules(*interfaces: str, emptied: str = "", family: str = "bridge") -> str:
    """As libvirt's ebtables writes them and ``nft`` shows them."""
    chains = "".join(
        f"\tchain libvirt-I-{name} {{\n"
        + ("" if name == emptied else "\t\tether saddr != 52:54:00:aa:aa:aa counter drop\n")
        + "\t\tcounter accept\n\t}\n\n"
        for name in interfaces
    )
    jumps = "".join(f'\t\tiifname "{name}" counter jump libvirt-I-{name}\n' for name in interfaces)
    hook = "\t\ttype filter hook prerouting priority dstnat; policy accept;\n"
    return f"table {family} nat {{\n{chains}\tchain PREROUTING {{\n{hook}{jumps}\t}}\n}}\n"


class TestWhatIsThere:
    def test_an_interface_is_guarded_that_has_a_chain_with_rules_and_the_way_into_it(self) -> None:
        assert guarded(bridge_rules("vnet1", "vnet10", "ec525400aaaaaa")) == {"vnet1", "vnet10", "ec525400aaaaaa"}
        assert guarded(bridge_rules("vnet1", "vnet2", emptied="vnet1")) == {"vnet2"}
        without_jump = bridge_rules("vnet1").replace('\t\tiifname "vnet1" counter jump libvirt-I-vnet1\n', "")
        assert guarded(without_jump) == guarded("") == guarded(bridge_rules("vnet1", family="ip")) == set()

    def test_a_network_lacks_nat_that_is_to_have_it_and_is_up(self) -> None:
        assert not lacks_nat(NAT_RULES, NAT)
        assert lacks_nat(NAT_RULES.replace("counter masquerade", "counter return"), NAT)
        assert not lacks_nat("", dataclasses.replace(NAT, is_active=False))
        assert not lacks_nat("", DEFAULT_NETWORK)


class TestKeep:
    @pytest.fixture
    def kernel(self) -> FakePacketFilter:
        kernel = FakePacketFilter()
        kernel.rules = bridge_rules("vnet1", "vnet2") + NAT_RULES
        return kernel

    @pytest.fixture
    def hypervisor(self, kernel: FakePacketFilter) -> FakeHypervisor:
        hypervisor = FakeHypervisor()
        hypervisor.networks["default"] = NAT
        hypervisor.ports = {"vnet1": FILTER_NAME, "vnet2": DUAL_FILTER_NAME}

        def rebuild(names: set[str]) -> None:
            kernel.rules = bridge_rules(*(port for port, name in hypervisor.ports.items() if name in names)) + NAT_RULES

        hypervisor.on_rebuild = rebuild
        return hypervisor

    @pytest.fixture
    def guard(self, hypervisor: FakeHypervisor, kernel: FakePacketFilter) -> FilterGuard:
        return FilterGuard(hypervisor, kernel, "default")

    def rebuilt(self, hypervisor: FakeHypervisor) -> int:
        return sum(name == "rebuild_filters" for name, _ in hypervisor.calls)

    def test_the_kernel_is_asked_once_for_each_change_and_not_at_all_without_guests(
        self, guard: FilterGuard, hypervisor: FakeHypervisor, kernel: FakePacketFilter
    ) -> None:
        for _ in range(3):
            guard.keep()
        assert (kernel.rulesets, self.rebuilt(hypervisor), guard.lost) == (1, 0, Lost())
        hypervisor.calls.clear()
        guard.keep()
        assert hypervisor.calls == []
        guard.ask()
        guard.keep()
        assert kernel.rulesets == 2
        hypervisor.ports.clear()
        kernel.flush()
        guard.keep()
        assert kernel.rulesets == 2

    def test_what_is_gone_is_made_again(
        self, guard: FilterGuard, hypervisor: FakeHypervisor, kernel: FakePacketFilter, caplog: pytest.LogCaptureFixture
    ) -> None:
        guard.keep()
        kernel.flush()
        kernel.rules = NAT_RULES
        guard.keep()
        assert (self.rebuilt(hypervisor), guard.lost) == (1, Lost())
        assert "gone from the packet filter and are there again: 2 guest cards" in caplog.text

    def test_a_guest_whose_filter_is_just_being_made_is_waited_for(
        self, guard: FilterGuard, hypervisor: FakeHypervisor, kernel: FakePacketFilter, caplog: pytest.LogCaptureFixture
    ) -> None:
        hypervisor.ports["vnet3"] = FILTER_NAME
        hypervisor.on_settle = lambda: setattr(kernel, "rules", bridge_rules("vnet1", "vnet2", "vnet3") + NAT_RULES)
        caplog.set_level(logging.WARNING)
        guard.keep()
        assert (self.rebuilt(hypervisor), guard.lost, caplog.text) == (0, Lost(), "")

    def test_what_libvirt_does_not_make_again_is_told_until_it_is_there(
        self, guard: FilterGuard, hypervisor: FakeHypervisor, kernel: FakePacketFilter
    ) -> None:
        hypervisor.ports = {"vnet1": "clean-traffic", "vnet2": FILTER_NAME}
        kernel.rules = ""
        hypervisor.on_rebuild = lambda _: setattr(kernel, "rules", bridge_rules("vnet2"))
        guard.keep()
        assert guard.lost == Lost(frozenset({"vnet1"}), "default")
        kernel.rules = bridge_rules("vnet1", "vnet2") + NAT_RULES
        guard.keep()
        assert guard.lost == Lost()

    def test_where_rules_are_not_to_be_seen_nothing_is_said(
        self, guard: FilterGuard, hypervisor: FakeHypervisor, kernel: FakePacketFilter
    ) -> None:
        for rules in (None, "table bridge libvirt_nwfilter {\n}\n" + NAT_RULES):
            kernel.rules = rules  # type: ignore[assignment]
            guard.ask()
            guard.keep()
            assert (self.rebuilt(hypervisor), guard.lost) == (0, Lost())

    def test_a_libvirt_that_is_away_is_asked_again(
        self, guard: FilterGuard, hypervisor: FakeHypervisor, kernel: FakePacketFilter
    ) -> None:
        hypervisor.fail_next("filtered_ports", HypervisorUnavailable("away"))
        guard.keep()
        guard.keep()
        assert kernel.rulesets == 1
