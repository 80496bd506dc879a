"""What every ``Hypervisor`` does, checked against libvirt's mock driver and against the fake of our own tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from common.errors import Conflict, HypervisorRejected
from common.hardware import DiskBus
from common.volume_refs import VolumeRef
from ecompute.domain_xml import domain_name, domain_xml
from ecompute.hypervisor import Copying, DhcpHost, Disk, DomainDisks, Frozen, Hypervisor, PowerState
from ecompute.libvirt_driver import LibvirtDriver
from ecompute.volume_xml import volume_xml
from tests.fakes.hypervisor import FakeHypervisor
from tests.support.domains import a_context, a_spec, a_stamp
from tests.support.processes import wait_until


@pytest.fixture(params=["fake", "libvirt-test-driver"])
def hypervisor(request: pytest.FixtureRequest) -> Iterator[Hypervisor]:
    # The mock driver lives in this process, and forgets its domains with its last connection.
    driver: Hypervisor = FakeHypervisor(in_thread=True) if request.param == "fake" else LibvirtDriver("test:///default")
    yield driver
    driver.close()


@pytest.fixture
def defined(hypervisor: Hypervisor) -> UUID:
    spec = a_spec()
    hypervisor.define(domain_xml(spec, a_context()))
    return spec.uuid


@pytest.fixture
def running(hypervisor: Hypervisor, defined: UUID) -> UUID:
    hypervisor.start(defined)
    return defined


def power_state(hypervisor: Hypervisor, uuid: UUID) -> PowerState:
    domain = hypervisor.get(uuid)
    assert domain is not None
    return domain.power_state


def test_a_domain_that_is_not_there_is_none(hypervisor: Hypervisor) -> None:
    assert hypervisor.get(uuid4()) is None


def test_a_defined_domain_is_off_and_as_its_spec_says(hypervisor: Hypervisor) -> None:
    spec, stamp = a_spec(memory_mib=96, vcpus=3), a_stamp(spec_revision=12)
    hypervisor.define(domain_xml(spec, a_context(stamp=stamp)))
    domain = hypervisor.get(spec.uuid)
    assert domain is not None
    assert (domain.uuid, domain.name) == (spec.uuid, domain_name(spec.name, spec.uuid))
    assert (domain.power_state, domain.is_active) == (PowerState.SHUTOFF, False)
    assert (domain.vcpus, domain.memory_mib) == (3, 96)
    assert domain.stamp == stamp


def test_two_instances_of_one_name_can_be_defined(hypervisor: Hypervisor) -> None:
    # A guest whose spec was lost keeps its domain; the name may be given anew meanwhile.
    for _ in range(2):
        hypervisor.define(domain_xml(a_spec("web-1"), a_context()))


def test_list_names_every_domain_and_whose_it_is(hypervisor: Hypervisor, defined: UUID) -> None:
    foreign = uuid4()
    hypervisor.define(
        f"<domain type='test'><name>foreign-{foreign}</name><uuid>{foreign}</uuid>"
        "<memory unit='MiB'>8</memory><vcpu>1</vcpu><os><type>hvm</type></os></domain>"
    )
    stamps = {domain.uuid: domain.stamp for domain in hypervisor.list()}
    assert stamps[defined] == a_stamp()
    assert stamps[foreign] is None


def test_defining_again_replaces_the_definition(hypervisor: Hypervisor, defined: UUID) -> None:
    newer = a_stamp(spec_revision=8)
    hypervisor.define(domain_xml(a_spec(uuid=defined, memory_mib=128), a_context(stamp=newer)))
    domain = hypervisor.get(defined)
    assert domain is not None
    assert (domain.memory_mib, domain.stamp) == (128, newer)


@pytest.mark.parametrize("xml", ["<domain", "<domain type='test'><name>half</name><uuid>{uuid}</uuid></domain>"])
def test_a_bad_definition_is_rejected_in_one_line(hypervisor: Hypervisor, xml: str) -> None:
    with pytest.raises(HypervisorRejected) as caught:
        hypervisor.define(xml.format(uuid=uuid4()))
    assert "\n" not in str(caught.value)


def test_each_change_of_power_and_each_again(hypervisor: Hypervisor, defined: UUID) -> None:
    for act, expected in (
        (hypervisor.start, PowerState.RUNNING),
        (hypervisor.pause, PowerState.PAUSED),
        (hypervisor.unpause, PowerState.RUNNING),
        (hypervisor.suspend, PowerState.SHUTOFF),
        (hypervisor.resume, PowerState.RUNNING),
        (hypervisor.destroy, PowerState.SHUTOFF),
    ):
        for _ in range(2):
            act(defined)
            assert power_state(hypervisor, defined) == expected


def test_the_disk_of_a_guest_that_is_off_or_not_there_has_no_live_snapshots(
    hypervisor: Hypervisor, defined: UUID, tmp_path: Path
) -> None:
    for uuid in (defined, uuid4()):
        for act in (hypervisor.take_snapshot, hypervisor.drop_snapshot):
            with pytest.raises(Conflict, match="it does not run"):
                act(uuid, tmp_path / "disk.qcow2", "before")
        with pytest.raises(Conflict, match="it does not run"):
            hypervisor.freeze(uuid)
        hypervisor.thaw(uuid)


def test_a_guest_without_an_agent_is_not_held_still(hypervisor: Hypervisor, running: UUID) -> None:
    assert hypervisor.freeze(running) is Frozen.NO
    with pytest.raises(HypervisorRejected) as caught:
        hypervisor.thaw(running)
    assert "\n" not in str(caught.value)
    assert power_state(hypervisor, running) is PowerState.RUNNING


def test_the_disks_of_a_domain_are_those_that_it_was_started_with_and_those_of_its_definition(
    hypervisor: Hypervisor, defined: UUID
) -> None:
    assert hypervisor.disks(uuid4()) == DomainDisks()
    before = hypervisor.disks(defined)
    assert [disk.target for disk in before.defined] == ["vda"] and before.live == ()
    hypervisor.start(defined)
    assert hypervisor.disks(defined).live == before.defined
    volume = VolumeRef(uuid4(), "data", 1)
    hypervisor.define(domain_xml(a_spec(uuid=defined, volumes=(volume,)), a_context(volume_paths=(Path("/v/data.raw"),))))
    assert hypervisor.disks(defined).defined == (*before.defined, Disk("/v/data.raw", "vdd"))
    assert Disk("/v/data.raw", "vdd") not in before.defined
    hypervisor.destroy(defined)
    assert hypervisor.disks(defined).live == ()


def test_disks_are_plugged_into_guests_that_run_only(hypervisor: Hypervisor, defined: UUID) -> None:
    disk = volume_xml(VolumeRef(uuid4(), "data", 0), Path("/v/data.raw"), DiskBus.VIRTIO)
    for uuid in (defined, uuid4()):
        with pytest.raises(Conflict, match="does not run"):
            hypervisor.attach_disk(uuid, disk)
        hypervisor.detach_disk(uuid, "/v/data.raw")


def test_starting_a_paused_domain_leaves_it_paused(hypervisor: Hypervisor, running: UUID) -> None:
    hypervisor.pause(running)
    hypervisor.start(running)
    assert power_state(hypervisor, running) == PowerState.PAUSED


def test_reboot_keeps_it_running(hypervisor: Hypervisor, running: UUID) -> None:
    hypervisor.reboot(running)
    assert power_state(hypervisor, running) == PowerState.RUNNING


def test_a_guest_that_was_asked_to_shut_down_is_off_and_says_why(hypervisor: Hypervisor, running: UUID) -> None:
    hypervisor.shutdown(running)
    domain = hypervisor.get(running)
    assert domain is not None
    assert (domain.power_state, domain.state_reason) == (PowerState.SHUTOFF, "shutdown")
    hypervisor.shutdown(running)


def test_a_paused_guest_is_not_asked_to_shut_down(hypervisor: Hypervisor, running: UUID) -> None:
    hypervisor.pause(running)
    domain = hypervisor.get(running)
    assert domain is not None and domain.was_paused
    hypervisor.shutdown(running)
    assert power_state(hypervisor, running) == PowerState.PAUSED


def saved_state(hypervisor: Hypervisor, uuid: UUID) -> tuple[PowerState, bool]:
    domain = hypervisor.get(uuid)
    assert domain is not None
    return domain.power_state, domain.has_saved_memory


def test_memory_is_saved_once_and_gone_on_with_once(hypervisor: Hypervisor, running: UUID) -> None:
    stamp = a_stamp(booted=1)
    hypervisor.write_stamp(running, stamp)
    disks = hypervisor.disks(running)
    for _ in range(2):
        hypervisor.suspend(running)
        domain = hypervisor.get(running)
        assert domain is not None and domain in hypervisor.list()
        assert (domain.power_state, domain.state_reason, domain.has_saved_memory) == (PowerState.SHUTOFF, "saved", True)
        assert domain.stamp == stamp
    assert hypervisor.disks(running) == disks, "it goes on with them"
    for _ in range(2):
        hypervisor.resume(running)
        assert saved_state(hypervisor, running) == (PowerState.RUNNING, False)


def test_a_guest_that_is_off_has_no_memory_to_be_saved_or_gone_on_with(hypervisor: Hypervisor, defined: UUID) -> None:
    for uuid in (defined, uuid4()):
        for act in (hypervisor.suspend, hypervisor.resume):
            with pytest.raises(Conflict):
                act(uuid)
        hypervisor.drop_memory(uuid)


def test_memory_that_is_dropped_and_that_of_a_guest_which_boots_is_gone(hypervisor: Hypervisor, running: UUID) -> None:
    hypervisor.suspend(running)
    for _ in range(2):
        hypervisor.drop_memory(running)
        assert saved_state(hypervisor, running) == (PowerState.SHUTOFF, False)
    assert hypervisor.disks(running).live == ()
    hypervisor.start(running)
    hypervisor.suspend(running)
    hypervisor.start(running)  # anew
    hypervisor.destroy(running)
    assert saved_state(hypervisor, running) == (PowerState.SHUTOFF, False)
    hypervisor.start(running)
    hypervisor.suspend(running)
    hypervisor.undefine(running)
    assert hypervisor.get(running) is None


def test_undefine_forgets_and_does_so_twice(hypervisor: Hypervisor, defined: UUID) -> None:
    for _ in range(2):
        hypervisor.undefine(defined)
        assert hypervisor.get(defined) is None


def test_only_the_disk_of_a_guest_that_is_up_is_made_larger_and_a_simulation_has_none(
    hypervisor: Hypervisor, defined: UUID, tmp_path: Path
) -> None:
    for uuid in (defined, uuid4()):
        with pytest.raises(Conflict, match="not up"):
            hypervisor.grow_disk(uuid, tmp_path / "disk.qcow2", 2 << 30)
    hypervisor.start(defined)
    assert not hypervisor.grow_disk(defined, tmp_path / "disk.qcow2", 2 << 30)


def test_only_the_disk_of_a_guest_that_is_up_is_copied_and_a_simulation_has_none(
    hypervisor: Hypervisor, defined: UUID, tmp_path: Path
) -> None:
    disk, target = tmp_path / "disk.qcow2", tmp_path / "copy.qcow2"
    hypervisor.subscribe_copies(lambda _: None)
    for uuid in (defined, uuid4()):
        hypervisor.end_copy(uuid)
        with pytest.raises(Conflict, match="not up"):
            hypervisor.begin_copy(uuid, disk, target)
    hypervisor.define(domain_xml(a_spec(uuid=defined), a_context(directory=tmp_path)))
    hypervisor.start(defined)
    assert hypervisor.begin_copy(defined, disk, target) is Copying.NOT_POSSIBLE
    state = hypervisor.copy_state(defined)
    assert (state.is_running, bool(state.problem)) == (False, True)
    hypervisor.end_copy(defined)
    assert power_state(hypervisor, defined) == PowerState.RUNNING and not target.exists()


def test_a_guest_keeps_the_size_that_it_was_started_with(hypervisor: Hypervisor, running: UUID) -> None:
    before = hypervisor.get(running)
    hypervisor.define(domain_xml(a_spec(uuid=running, memory_mib=512, vcpus=3), a_context()))
    seen = hypervisor.get(running)
    assert before is not None and seen is not None
    assert (seen.vcpus, seen.memory_mib) == (before.vcpus, before.memory_mib) != (3, 512)
    hypervisor.destroy(running)
    hypervisor.start(running)
    seen = hypervisor.get(running)
    assert seen is not None and (seen.vcpus, seen.memory_mib) == (3, 512)


def test_an_active_domain_is_not_undefined(hypervisor: Hypervisor, running: UUID) -> None:
    with pytest.raises(Conflict, match="running"):
        hypervisor.undefine(running)
    assert power_state(hypervisor, running) == PowerState.RUNNING


def test_what_would_end_a_missing_domain_succeeds(hypervisor: Hypervisor) -> None:
    for act in (hypervisor.shutdown, hypervisor.destroy, hypervisor.undefine):
        act(uuid4())


@pytest.mark.parametrize("verb", ["start", "reboot", "pause", "unpause", "suspend", "resume"])
def test_what_needs_a_domain_conflicts_without_one(hypervisor: Hypervisor, verb: str) -> None:
    with pytest.raises(Conflict):
        getattr(hypervisor, verb)(uuid4())


@pytest.mark.parametrize("verb", ["reboot", "pause", "unpause"])
def test_what_needs_an_active_domain_conflicts_with_one_that_is_off(hypervisor: Hypervisor, defined: UUID, verb: str) -> None:
    with pytest.raises(Conflict, match="shutoff"):
        getattr(hypervisor, verb)(defined)


def test_a_stamp_is_read_as_it_was_written_and_outlives_the_run(hypervisor: Hypervisor, running: UUID) -> None:
    stamp = dataclasses.replace(a_stamp(), booted=3, spec_revision=2**40, boot_id="another", definition="f" * 32)
    hypervisor.write_stamp(running, stamp)
    for prepare in (lambda _: None, hypervisor.destroy, hypervisor.start):
        prepare(running)
        domain = hypervisor.get(running)
        assert domain is not None
        assert domain.stamp == stamp


def test_a_stamp_can_be_written_while_off(hypervisor: Hypervisor, defined: UUID) -> None:
    hypervisor.write_stamp(defined, a_stamp(booted=2))
    domain = hypervisor.get(defined)
    assert domain is not None
    assert domain.stamp == a_stamp(booted=2)


def test_a_running_guest_keeps_its_stamp_when_it_is_defined_anew(hypervisor: Hypervisor, running: UUID) -> None:
    hypervisor.define(domain_xml(a_spec(uuid=running), a_context(stamp=a_stamp(spec_revision=9))))
    domain = hypervisor.get(running)
    assert domain is not None
    assert domain.stamp == a_stamp()
    hypervisor.destroy(running)
    domain = hypervisor.get(running)
    assert domain is not None
    assert domain.stamp == a_stamp(spec_revision=9)


def test_a_missing_domain_cannot_be_stamped(hypervisor: Hypervisor) -> None:
    with pytest.raises(Conflict):
        hypervisor.write_stamp(uuid4(), a_stamp())


def test_the_host_has_a_size(hypervisor: Hypervisor) -> None:
    host = hypervisor.host()
    assert host.cpus > 0
    assert host.memory_mib > 0
    assert host.architecture
    assert host.hostname
    assert host.versions["libvirt"].count(".") == 2


def test_the_default_network_and_none_of_another_name(hypervisor: Hypervisor) -> None:
    network = hypervisor.network("default")
    assert network is not None
    assert (network.is_active, network.gateway, network.prefix_length) == (True, "192.168.122.1", 24)
    assert (network.dhcp_start, network.dhcp_end) == ("192.168.122.2", "192.168.122.254")
    assert network.bridge == "virbr0"
    assert hypervisor.network("no-such-network") is None
    assert hypervisor.leases("no-such-network") == ()
    hypervisor.start_network("default")  # which is up already
    with pytest.raises(HypervisorRejected, match="no-such-network"):
        hypervisor.start_network("no-such-network")
    assert hypervisor.leases("default") == ()


def test_dhcp_entries_come_and_go_and_each_again(hypervisor: Hypervisor) -> None:
    host = DhcpHost("52:54:c0:a8:7a:32", "192.168.122.50")
    for act, expected in ((hypervisor.add_dhcp_host, (host,)), (hypervisor.remove_dhcp_host, ())):
        for _ in range(2):
            act("default", host)
            network = hypervisor.network("default")
            assert network is not None
            assert network.dhcp_hosts == expected


def test_an_address_or_mac_that_another_entry_has_conflicts(hypervisor: Hypervisor) -> None:
    host = DhcpHost("52:54:c0:a8:7a:33", "192.168.122.51")
    hypervisor.add_dhcp_host("default", host)
    for other in (dataclasses.replace(host, mac="52:54:00:00:00:01"), dataclasses.replace(host, address="192.168.122.52")):
        with pytest.raises(Conflict, match=r"192\.168\.122\.51"):
            hypervisor.add_dhcp_host("default", other)
        hypervisor.remove_dhcp_host("default", other)
    network = hypervisor.network("default")
    assert network is not None
    assert network.dhcp_hosts == (host,)


def test_no_entry_in_a_network_that_is_not_there(hypervisor: Hypervisor) -> None:
    host = DhcpHost("52:54:c0:a8:7a:34", "192.168.122.52")
    with pytest.raises(HypervisorRejected, match="no-such-network"):
        hypervisor.add_dhcp_host("no-such-network", host)
    hypervisor.remove_dhcp_host("no-such-network", host)


def test_no_filter_of_an_unknown_name(hypervisor: Hypervisor) -> None:
    assert hypervisor.ensure_filter("no-such-filter") is False


def test_every_change_of_a_domain_is_told(hypervisor: Hypervisor) -> None:
    told: list[UUID] = []
    hypervisor.subscribe(told.append, lambda: None)
    spec = a_spec()
    hypervisor.get(spec.uuid)  # the connection is there, so that nothing is missed
    for number, act in enumerate(
        (
            hypervisor.start,
            hypervisor.pause,
            hypervisor.unpause,
            hypervisor.suspend,
            hypervisor.resume,
            hypervisor.destroy,
            hypervisor.undefine,
        )
    ):
        if number == 0:
            hypervisor.define(domain_xml(spec, a_context()))
        act(spec.uuid)
        # One for each change at least; libvirt tells some twice, as resumed and started.
        wait_until(lambda least=number + 2: told.count(spec.uuid) >= least, timeout_seconds=5, what=f"told of change {number}")


def test_only_a_running_guest_has_a_picture_a_screen_and_an_agent(hypervisor: Hypervisor, running: UUID) -> None:
    assert hypervisor.screenshot(running).data
    assert hypervisor.screen_socket(running) == "", "it was defined without a screen"
    with pytest.raises(HypervisorRejected) as caught:
        hypervisor.ask_agent(running, '{"execute": "guest-ping"}', 1)
    assert caught.value.reason == "NoAgent"
    assert hypervisor.screen_socket(uuid4()) == ""
    for act in (lambda: hypervisor.screenshot(uuid4()), lambda: hypervisor.ask_agent(uuid4(), "{}", 1)):
        with pytest.raises(HypervisorRejected):
            act()
    hypervisor.destroy(running)
    assert hypervisor.screen_socket(running) == ""
    with pytest.raises(HypervisorRejected):
        hypervisor.screenshot(running)


def test_what_guests_use_is_told_of_those_that_run(hypervisor: Hypervisor, running: UUID) -> None:
    (used,) = [one for one in hypervisor.usage() if one.uuid == running]
    assert used.vcpus and used.cpu_ns is not None and used.memory_most_kib
    hypervisor.destroy(running)
    assert running not in [one.uuid for one in hypervisor.usage()]
