"""What a host should have in Placement, worked out from what was measured; and the file that remembers operators' traits."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from uuid import uuid4

import os_traits
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import InventoryConfig, ResourceConfig
from common.errors import Permanent
from common.model import HostAdmin
from common.placement import DISABLED_TRAIT, OWNER_TRAIT, Inventory
from ecompute.host_traits import MEASURABLE, guest_flags
from ecompute.hypervisor import Domain, HostInfo, PowerState, Stamp
from ecompute.inventory import AddedTraits, disk_total_gib, foreign_use, wanted_inventory, wanted_traits

HOST = HostInfo(
    libvirt_host_uuid=str(uuid4()), hostname="h1", architecture="x86_64", cpus=4, memory_mib=8000,
    cpu_flags=frozenset({"sse4_1", "avx2", "aes", "vmx"}), machine_types=("q35",), versions={},
)  # fmt: skip
PLAIN = InventoryConfig(ResourceConfig(), ResourceConfig(), ResourceConfig())


class TestInventory:
    def test_offers_what_the_host_has_by_the_configs_reserve_and_ratio(self) -> None:
        config = InventoryConfig(ResourceConfig(1, 4.0), ResourceConfig(512, 1.5), ResourceConfig(2, 1.0))
        assert wanted_inventory(HOST, 100, config) == {
            "VCPU": Inventory(total=4, reserved=1, allocation_ratio=4.0, max_unit=4),
            "MEMORY_MB": Inventory(total=8000, reserved=512, allocation_ratio=1.5, max_unit=8000),
            "DISK_GB": Inventory(total=100, reserved=2, allocation_ratio=1.0, max_unit=100),
        }

    def test_running_guests_of_others_are_reserved(self) -> None:
        offers = wanted_inventory(HOST, 100, PLAIN, foreign_vcpus=2, foreign_memory_mib=3000)
        assert (offers["VCPU"].capacity, offers["MEMORY_MB"].capacity, offers["DISK_GB"].capacity) == (2, 5000, 100)

    def test_running_guests_of_others_take_of_the_overcommitted_capacity(self) -> None:
        config = dataclasses.replace(PLAIN, vcpu=ResourceConfig(0, 4.0))
        assert wanted_inventory(HOST, 100, config, foreign_vcpus=5)["VCPU"].reserved == 2  # 5 of 16, rounded up to 8 of 16

    def test_the_reserve_of_the_disk_is_what_is_taken_where_that_is_more(self) -> None:
        config = dataclasses.replace(PLAIN, disk_gb=ResourceConfig(2, 1.5))
        reserved = [wanted_inventory(HOST, 100, config, taken_disk_gib=gib)["DISK_GB"].reserved for gib in (0, 2, 3, 50, 200)]
        assert reserved == [2, 2, 3, 50, 100]

    def test_what_the_host_has_nothing_of_is_left_out(self) -> None:
        assert set(wanted_inventory(HOST, 0, PLAIN)) == {"VCPU", "MEMORY_MB"}

    @given(
        cpus=st.integers(0, 512), disk=st.integers(0, 10**6), reserved=st.integers(0, 10**7),
        ratio=st.floats(0.01, 100), foreign=st.integers(0, 10**7),
    )  # fmt: skip
    def test_is_always_something_that_placement_takes(
        self, cpus: int, disk: int, reserved: int, ratio: float, foreign: int
    ) -> None:
        each = ResourceConfig(reserved, ratio)
        host = dataclasses.replace(HOST, cpus=cpus)
        offers = wanted_inventory(
            host, disk, InventoryConfig(each, each, each), foreign_vcpus=foreign, foreign_memory_mib=foreign
        )
        for offer in offers.values():
            assert 0 <= offer.reserved <= offer.total
            assert 1 <= offer.max_unit <= offer.total
            assert offer.capacity >= 0


class TestTraits:
    def test_every_trait_that_is_ever_wanted_is_one_of_os_traits(self) -> None:
        assert {OWNER_TRAIT} == MEASURABLE - set(os_traits.get_traits())

    def test_come_from_the_cpus_flags_and_what_every_host_can(self) -> None:
        assert wanted_traits(HOST) == {
            "HW_CPU_X86_SSE41", "HW_CPU_X86_AVX2", "HW_CPU_X86_AESNI", "HW_CPU_X86_VMX", "HW_CPU_X86_INTEL_VMX",
            "HW_ARCH_X86_64", "COMPUTE_ARCH_X86_64", "COMPUTE_NODE", "COMPUTE_IMAGE_TYPE_QCOW2", "COMPUTE_IMAGE_TYPE_RAW",
            "COMPUTE_NET_VIF_MODEL_VIRTIO", "COMPUTE_STORAGE_BUS_VIRTIO", OWNER_TRAIT,
        }  # fmt: skip

    def test_of_this_machine_are_found(self) -> None:
        flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
        host = dataclasses.replace(HOST, architecture=os.uname().machine, cpu_flags=frozenset(flags.partition(":")[2].split()))
        assert ("HW_CPU_X86_SSE2" in wanted_traits(host)) == ("sse2" in host.cpu_flags)

    @pytest.mark.parametrize("flag", ["gfni", "vaes", "vpclmulqdq"])
    def test_a_flag_with_an_avx512_trait_only_counts_where_there_is_avx512(self, flag: str) -> None:
        without = dataclasses.replace(HOST, cpu_flags=frozenset({"avx2", flag}))
        with_avx512 = dataclasses.replace(HOST, cpu_flags=frozenset({"avx2", "avx512f", flag}))
        assert f"HW_CPU_X86_AVX512{flag.upper()}" not in wanted_traits(without)
        assert f"HW_CPU_X86_AVX512{flag.upper()}" in wanted_traits(with_avx512)

    def test_a_flag_means_what_it_means_on_its_architecture(self) -> None:
        arm = dataclasses.replace(HOST, architecture="aarch64", cpu_flags=frozenset({"aes", "asimd"}))
        traits = wanted_traits(arm)
        assert {"HW_CPU_AARCH64_AES", "HW_CPU_AARCH64_ASIMD", "HW_ARCH_AARCH64", "COMPUTE_ARCH_AARCH64"} <= traits
        assert not any("X86" in trait for trait in traits)

    def test_an_unknown_architecture_or_flag_claims_nothing(self) -> None:
        odd = dataclasses.replace(HOST, architecture="pdp11", cpu_flags=frozenset({"avx2", "nonsense"}))
        assert not any(trait.startswith(("HW_", "COMPUTE_ARCH")) for trait in wanted_traits(odd))

    def test_the_bridges_that_guests_may_be_on_are_among_them(self) -> None:
        assert wanted_traits(HOST, bridges={"br0", "br-lan.4"}) - wanted_traits(HOST) == {
            "CUSTOM_BRIDGE_BR0", "CUSTOM_BRIDGE_BR_LAN_4",
        }  # fmt: skip

    def test_an_operator_adds_traits_and_switches_off(self) -> None:
        extra = wanted_traits(HOST, HostAdmin(disabled=True, traits=("CUSTOM_GOLD",))) - wanted_traits(HOST)
        assert extra == {DISABLED_TRAIT, "CUSTOM_GOLD"}
        assert wanted_traits(HOST, HostAdmin()) == wanted_traits(HOST)


class TestForeignUse:
    def test_counts_running_guests_that_do_not_answer_to_us(self) -> None:
        ours, other = uuid4(), uuid4()

        def domain(state: PowerState, stamp: Stamp | None) -> Domain:
            return Domain(uuid4(), "d", state, "", stamp, vcpus=2, memory_mib=512)

        running, paused, off = PowerState.RUNNING, PowerState.PAUSED, PowerState.SHUTOFF
        mine, theirs = Stamp(ours, 1, 1), Stamp(other, 1, 1)
        assert foreign_use([domain(running, None), domain(paused, None), domain(off, None)], ours) == (4, 1024)
        assert foreign_use([domain(running, mine), domain(running, theirs), domain(off, theirs)], ours) == (2, 512)
        assert foreign_use([], ours) == (0, 0)


class TestDisk:
    def test_is_the_whole_file_system_in_gib_also_before_the_directory_is_made(self, tmp_path: Path) -> None:
        measured = os.statvfs(tmp_path)
        expected = measured.f_blocks * measured.f_frsize // 2**30
        assert disk_total_gib(tmp_path) == disk_total_gib(tmp_path / "not" / "yet") == expected


class TestAddedTraits:
    def test_are_remembered_across_a_restart(self, tmp_path: Path) -> None:
        path, provider = tmp_path / "state" / "traits.json", uuid4()
        AddedTraits(path, provider).remember(frozenset({"CUSTOM_A", "CUSTOM_B"}))
        again = AddedTraits(path, provider)
        assert again.names == {"CUSTOM_A", "CUSTOM_B"}
        again.forget(frozenset({"CUSTOM_A"}))
        assert AddedTraits(path, provider).names == {"CUSTOM_B"}
        assert [p.name for p in path.parent.iterdir()] == ["traits.json"]

    def test_of_another_provider_are_not_ours(self, tmp_path: Path) -> None:
        AddedTraits(tmp_path / "t", uuid4()).remember(frozenset({"CUSTOM_A"}))
        assert AddedTraits(tmp_path / "t", uuid4()).names == frozenset()

    @pytest.mark.parametrize(
        "content", [b"", b"{", b"[]", b"null", b"\xff", json.dumps({"provider": 1}).encode(), b'{"traits": 3}']
    )
    def test_a_damaged_file_is_as_good_as_none(self, tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / "t").write_bytes(content)
        added = AddedTraits(tmp_path / "t", uuid4())
        assert added.names == frozenset()
        added.remember(frozenset({"CUSTOM_A"}))

    def test_nothing_new_writes_nothing(self, tmp_path: Path) -> None:
        AddedTraits(tmp_path / "t", uuid4()).remember(frozenset())
        assert not (tmp_path / "t").exists()

    def test_where_it_cannot_be_written_it_is_not_believed(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        added = AddedTraits(tmp_path / "file" / "t", uuid4())
        with pytest.raises(Permanent):
            added.remember(frozenset({"CUSTOM_A"}))
        assert added.names == frozenset()


def test_an_emulated_guest_is_promised_only_what_qemu_emulates() -> None:
    flags = frozenset({"avx2", "avx512f", "vmx", "sse4_2"})
    assert guest_flags(flags, "qemu") == {"avx2", "sse4_2"}
    assert guest_flags(flags, "kvm") == flags
