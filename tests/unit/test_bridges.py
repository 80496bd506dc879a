"""Bridges of the host: which there are, which of them guests may use, and when a card cannot be on one."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from common import rtnetlink
from common.errors import Permanent, Transient
from common.nics import Nic
from ecompute import bridge_vlans
from ecompute.bridges import HostBridges


def a_bridge(interfaces: Path, name: str, *, filters_vlans: bool | None = True) -> None:
    (interfaces / name / "bridge").mkdir(parents=True)
    if filters_vlans is not None:
        (interfaces / name / "bridge" / "vlan_filtering").write_text(f"{int(filters_vlans)}\n")


def a_port(interfaces: Path, name: str, bridge: str) -> None:
    (interfaces / name).mkdir()
    (interfaces / name / "master").symlink_to(f"../{bridge}")


def test_a_simulated_host_takes_any_bridge_but_no_vlan() -> None:
    bridges = HostBridges(None)
    bridges.check(Nic("", bridge="br0"))
    with pytest.raises(Permanent, match="simulated, and a card in VLAN 7 cannot be"):
        bridges.check(Nic("", bridge="br0", vlan=7))


class TestWhichThereAre:
    def test_guests_may_use_those_that_are_not_libvirts(self, tmp_path: Path) -> None:
        a_bridge(tmp_path, "br0")
        a_bridge(tmp_path, "virbr0")
        (tmp_path / "eth0").mkdir()
        bridges = HostBridges(tmp_path)
        assert bridges.names() == {"br0", "virbr0"}
        assert bridges.usable(lambda: frozenset({"virbr0"})) == {"br0"}

    def test_libvirt_is_asked_only_when_bridges_came_or_went(self, tmp_path: Path) -> None:
        a_bridge(tmp_path, "br0")
        asked: list[int] = []

        def own_bridges() -> frozenset[str]:
            asked.append(1)
            return frozenset()

        bridges = HostBridges(tmp_path)
        for _ in range(3):
            assert bridges.usable(own_bridges) == {"br0"}
        assert len(asked) == 1
        a_bridge(tmp_path, "br1")
        assert bridges.usable(own_bridges) == {"br0", "br1"}
        assert len(asked) == 2

    def test_where_nothing_is_real_every_bridge_is_there(self) -> None:
        bridges = HostBridges(None)
        bridges.check(Nic("", bridge="br7"))
        bridges.put_into_vlan("vnet0", 3)
        assert bridges.names() == frozenset()


class TestCheck:
    def test_a_bridge_that_is_not_there(self, tmp_path: Path) -> None:
        (tmp_path / "eth0").mkdir()
        for name in ("br0", "eth0"):
            with pytest.raises(Permanent, match=f"no bridge {name}") as caught:
                HostBridges(tmp_path).check(Nic("", bridge=name))
            assert caught.value.reason == "NoBridge"

    @pytest.mark.parametrize("filters_vlans", [False, None])
    def test_a_bridge_that_knows_no_vlans(self, tmp_path: Path, filters_vlans: bool | None) -> None:
        a_bridge(tmp_path, "br0", filters_vlans=filters_vlans)
        HostBridges(tmp_path).check(Nic("", bridge="br0"))
        with pytest.raises(Permanent, match="ip link set br0 type bridge vlan_filtering 1"):
            HostBridges(tmp_path).check(Nic("", bridge="br0", vlan=42))

    def test_one_that_does(self, tmp_path: Path) -> None:
        a_bridge(tmp_path, "br0")
        HostBridges(tmp_path).check(Nic("", bridge="br0", vlan=42))


class TestPutIntoVlan:
    def test_the_port_is_put_there(self, tmp_path: Path) -> None:
        done: list[tuple[str, int]] = []
        a_bridge(tmp_path, "br0")
        a_port(tmp_path, "vnet3", "br0")
        HostBridges(tmp_path, set_vlan=lambda *what: done.append(what)).put_into_vlan("vnet3", 42)
        assert done == [("vnet3", 42)]

    def test_not_on_a_bridge_that_ignores_it(self, tmp_path: Path) -> None:
        a_bridge(tmp_path, "br0", filters_vlans=False)
        a_port(tmp_path, "vnet3", "br0")
        with pytest.raises(Transient, match="no VLANs any more"):
            HostBridges(tmp_path, set_vlan=lambda *_: pytest.fail("it was put there")).put_into_vlan("vnet3", 42)

    def test_what_the_kernel_refuses_is_said(self, tmp_path: Path) -> None:
        def refuse(device: str, vlan: int) -> None:
            raise PermissionError(1, "Operation not permitted")

        a_bridge(tmp_path, "br0")
        a_port(tmp_path, "vnet3", "br0")
        with pytest.raises(Transient, match="vnet3 into VLAN 42: Operation not permitted"):
            HostBridges(tmp_path, set_vlan=refuse).put_into_vlan("vnet3", 42)


class FakeKernel:
    """Keeps the VLANs of ports as the kernel does, and speaks rtnetlink."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ports: dict[str, dict[int, int]]) -> None:
        self.ports = dict(enumerate(ports.values(), start=7))
        self.steps: list[set[int]] = []  # the VLANs of the changed port after each change
        indexes = {name: index for index, name in enumerate(ports, start=7)}
        monkeypatch.setattr("socket.if_nametoindex", indexes.__getitem__)
        monkeypatch.setattr(rtnetlink, "request", self.request)

    def request(self, kind: int, flags: int, body: bytes) -> list[tuple[int, bytes]]:
        family, _, _, index, _, _ = struct.unpack_from("=BBHiII", body)
        assert family == 7
        attributes = dict(rtnetlink.attributes(body[16:]))
        if kind == 18:
            assert (flags, attributes) == (rtnetlink.NLM_F_DUMP, {29: struct.pack("=I", 2)})
            return [(16, self._link(number, vlans)) for number, vlans in self.ports.items()]
        assert flags == rtnetlink.NLM_F_ACK
        vlan_flags, vlan = struct.unpack("=HH", dict(rtnetlink.attributes(attributes[26]))[2])
        if kind == 17:
            del self.ports[index][vlan]
        else:
            assert kind == 19
            self.ports[index][vlan] = vlan_flags
        self.steps.append(set(self.ports[index]))
        return []

    @staticmethod
    def _link(index: int, vlans: dict[int, int]) -> bytes:
        infos = b"".join(rtnetlink.attribute(2, struct.pack("=HH", flags, vlan)) for vlan, flags in vlans.items())
        return struct.pack("=BBHiII", 7, 0, 0, index, 0, 0) + rtnetlink.attribute(3, b"vnet\0") + rtnetlink.attribute(26, infos)


class TestVlansByNetlink:
    def test_a_port_is_in_the_one_vlan_and_never_in_two(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kernel = FakeKernel(monkeypatch, {"vnet0": {1: 6}, "vnet1": {1: 6}})
        bridge_vlans.set_vlan("vnet1", 42)
        assert kernel.ports == {7: {1: 6}, 8: {42: 6}}
        assert kernel.steps == [set(), {42}]
        bridge_vlans.set_vlan("vnet1", 42)
        assert bridge_vlans.vlans_of("vnet1") == {42: 6}

    def test_a_device_that_is_gone(self) -> None:
        with pytest.raises(OSError, match="no interface"):
            bridge_vlans.set_vlan("no-such-device", 42)

    def test_the_real_kernel_lists_its_links(self) -> None:
        assert bridge_vlans.vlans_of("lo") == {}
