"""What only a real libvirtd with a real QEMU shows of the libvirt driver: processes, firewall, dnsmasq, broken connections."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.errors import Conflict, HypervisorRejected, HypervisorUnavailable
from common.hardware import USUAL, CardModel, DiskBus, Hardware
from common.model import Address, InstanceSpec, VolumeRef
from ecompute import disk_snapshots, libvirt_driver, qcow2_snapshots
from ecompute.anti_spoofing import DUAL_FILTER_NAME, FILTER_NAME
from ecompute.config_drive import Drive, image
from ecompute.disk_growth import virtual_size_bytes
from ecompute.domain_xml import domain_xml
from ecompute.hypervisor import Copying, DhcpHost, Disk, Domain, DomainDisks, Frozen, Lease, PowerState
from ecompute.libvirt_driver import LibvirtDriver
from ecompute.probe_initramfs import probe_initramfs
from ecompute.volume_xml import volume_xml
from tests.support.domains import a_context, a_kernel, a_spec, a_stamp
from tests.support.hosts import NamespacedHost, children_of
from tests.support.processes import freeze, wait_until

INSTANCES = "/var/lib/etcd-compute/instances"
ADDRESS = Address("default", "52:54:c0:a8:7a:32", "192.168.122.50", 24, "192.168.122.1")


@pytest.fixture
def driver(libvirt_host: NamespacedHost) -> Iterator[LibvirtDriver]:
    driver = LibvirtDriver(libvirt_host.uri)
    yield driver
    driver.close()


class Guests:
    """Makes small domains whose disk holds nothing: QEMU runs, the BIOS finds no system and waits."""

    def __init__(self, host: NamespacedHost, driver: LibvirtDriver) -> None:
        self._host, self._driver = host, driver
        self._made: list[UUID] = []

    def define(
        self, name: str = "guest", *, edit: Callable[[ET.Element], None] | None = None, hardware: Hardware = USUAL, **context: Any
    ) -> InstanceSpec:  # fmt: skip
        spec = dataclasses.replace(a_spec(name), hardware=hardware)
        self._made.append(spec.uuid)
        directory = Path(INSTANCES) / str(spec.uuid)
        outside = self._host.path(str(directory))
        outside.mkdir(parents=True)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", outside / "disk.qcow2", "1M"], check=True, timeout=20)
        root = ET.fromstring(domain_xml(spec, a_context(virt_type="qemu", directory=directory, **context)))
        if edit:
            edit(root)
        self._driver.define(ET.tostring(root, encoding="unicode"))
        return spec

    def start(self, name: str = "guest", **context: Any) -> InstanceSpec:
        spec = self.define(name, **context)
        self._driver.start(spec.uuid)
        return spec

    def remove_all(self) -> None:
        for uuid in self._made:
            self._driver.destroy(uuid)
            self._driver.undefine(uuid)


@pytest.fixture
def guests(libvirt_host: NamespacedHost, driver: LibvirtDriver) -> Iterator[Guests]:
    guests = Guests(libvirt_host, driver)
    yield guests
    guests.remove_all()


def seen(driver: LibvirtDriver, spec: InstanceSpec) -> Domain:
    domain = driver.get(spec.uuid)
    assert domain is not None
    return domain


def qemu_pid(host: NamespacedHost, spec: InstanceSpec) -> int:
    """QEMU's process as this machine counts it."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if command[0].endswith(b"qemu-system-x86_64") and str(spec.uuid).encode() in command:
            return int(folder.name)
    raise AssertionError(f"no QEMU of {spec.uuid}\n{host.logs()}")


def test_snapshots_of_the_disk_of_a_guest_that_goes_on(
    libvirt_host: NamespacedHost, driver: LibvirtDriver, guests: Guests
) -> None:
    spec = guests.start()
    disk = Path(f"{INSTANCES}/{spec.uuid}/disk.qcow2")
    found = lambda: qcow2_snapshots.read(libvirt_host.path(str(disk))).tags  # noqa: E731
    for tag in ("before+crash", "after"):
        driver.take_snapshot(spec.uuid, disk, tag)
    assert found() == ("before+crash", "after")
    with pytest.raises(HypervisorRejected, match="QEMU says: Snapshot with name 'after' already exists"):
        driver.take_snapshot(spec.uuid, disk, "after")
    with pytest.raises(Conflict, match="runs without the disk /other"):
        driver.take_snapshot(spec.uuid, Path("/other"), "after")
    for _ in range(2):
        driver.drop_snapshot(spec.uuid, disk, "after")
    assert found() == ("before+crash",)
    assert seen(driver, spec).power_state is PowerState.RUNNING
    told = libvirt_host.run(["virsh", "-c", libvirt_host.uri, "dominfo", str(spec.uuid)]).stdout
    assert "custom monitor control commands issued" in told, "as docs/decisions.md says"
    assert driver.freeze(spec.uuid) is Frozen.NO, "a BIOS has no agent"
    with pytest.raises(HypervisorRejected, match="not connected"):
        driver.thaw(spec.uuid)
    with pytest.raises(Conflict, match="another process has it open"):
        disk_snapshots.go_back(libvirt_host.path(str(disk)), "before+crash")
    driver.destroy(spec.uuid)
    disk_snapshots.go_back(libvirt_host.path(str(disk)), "before+crash")
    with pytest.raises(Conflict, match="it does not run"):
        driver.take_snapshot(spec.uuid, disk, "after")
    driver.start(spec.uuid)
    assert seen(driver, spec).power_state is PowerState.RUNNING, "libvirt makes the file QEMU's again"


@pytest.mark.parametrize("machine_type", ["pc", "q35"])
def test_a_config_drive_is_a_disk_that_qemu_only_reads_on_every_machine_type(
    machine_type: str, libvirt_host: NamespacedHost, driver: LibvirtDriver, guests: Guests
) -> None:
    spec = guests.define(machine_type=machine_type, has_drive=True)
    drive = libvirt_host.path(f"{INSTANCES}/{spec.uuid}/config-drive.iso")
    drive.write_bytes(image(Drive("config-2", lambda _: {"openstack/latest/user_data": b"x"}), os.urandom))
    drive.chmod(0o600)
    driver.start(spec.uuid)
    assert seen(driver, spec).power_state is PowerState.RUNNING
    process = Path(f"/proc/{qemu_pid(libvirt_host, spec)}")
    assert "product=etcd-compute VM" in (process / "cmdline").read_text()
    opened = [link for link in (process / "fd").iterdir() if link.readlink().name == "config-drive.iso"]
    flags = [int((process / "fdinfo" / link.name).read_text().split("flags:")[1].split()[0], 8) for link in opened]
    assert [flag & os.O_ACCMODE for flag in flags] == [os.O_RDONLY]


@pytest.mark.parametrize("machine_type", ["pc", "q35"])
def test_a_guest_without_virtio_drivers_has_disks_and_cards_that_it_can_drive(
    machine_type: str, libvirt_host: NamespacedHost, driver: LibvirtDriver, guests: Guests
) -> None:
    hardware = Hardware(DiskBus.SATA, CardModel.E1000)
    spec = guests.define(machine_type=machine_type, has_drive=True, hardware=hardware, addresses=(ADDRESS,))
    libvirt_host.path(f"{INSTANCES}/{spec.uuid}/config-drive.iso").write_bytes(
        image(Drive("config-2", lambda _: {"openstack/latest/user_data": b"x"}), os.urandom)
    )
    driver.start(spec.uuid)
    assert seen(driver, spec).power_state is PowerState.RUNNING
    command = Path(f"/proc/{qemu_pid(libvirt_host, spec)}/cmdline").read_text()
    assert all(f'"driver":"{device}"' in command for device in ("ide-hd", "ide-cd", "e1000"))
    assert "virtio-blk" not in command and "virtio-net" not in command


# -- host ------------------------------------------------------------------------------------------------------------------


def test_the_host_is_described_as_it_is(libvirt_host: NamespacedHost, driver: LibvirtDriver) -> None:
    host = driver.host()
    total_kib = next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line)
    flags = next(line.split(":")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    assert (host.libvirt_host_uuid, host.hostname) == (libvirt_host.libvirt_uuid, libvirt_host.name)
    assert (host.cpus, host.memory_mib, host.cpu_flags) == (os.cpu_count(), total_kib // 1024, frozenset(flags.split()))
    assert host.architecture == "x86_64"
    assert {"pc", "q35"} <= set(host.machine_types)
    assert set(host.versions) == {"libvirt", "qemu"}


# -- domains ---------------------------------------------------------------------------------------------------------------


def test_a_guest_starts_stops_and_goes_however_often_it_is_told(
    libvirt_host: NamespacedHost, driver: LibvirtDriver, guests: Guests
) -> None:
    spec = guests.define(addresses=(ADDRESS,), filter_name=FILTER_NAME if driver.ensure_filter(FILTER_NAME) else None)
    for _ in range(2):
        driver.start(spec.uuid)
        domain = seen(driver, spec)
        assert (domain.power_state, domain.state_reason) == (PowerState.RUNNING, "booted")
    assert (domain.vcpus, domain.memory_mib, domain.stamp) == (1, 64, a_stamp())
    assert domain in driver.list()

    # The definition meant what it said: the console is kept in a file, and cloud-init will know where it is.
    assert libvirt_host.path(f"{INSTANCES}/{spec.uuid}/console.log").exists()
    command = Path(f"/proc/{qemu_pid(libvirt_host, spec)}/cmdline").read_text()
    assert "product=OpenStack Compute" in command
    assert "tb-size=32" in command

    for _ in range(2):
        driver.destroy(spec.uuid)
        domain = seen(driver, spec)
        assert (domain.power_state, domain.state_reason) == (PowerState.SHUTOFF, "destroyed")
    driver.undefine(spec.uuid)
    assert driver.get(spec.uuid) is None


def test_saved_memory_is_that_of_the_guest_as_it_was_and_half_of_it_is_none(
    libvirt_host: NamespacedHost, driver: LibvirtDriver, guests: Guests
) -> None:
    spec = guests.start()
    driver.write_stamp(spec.uuid, a_stamp(booted=1))
    before = driver.disks(spec.uuid)
    larger = dataclasses.replace(spec, resources={"VCPU": 2, "MEMORY_MB": 96, "DISK_GB": 1})  # from its next boot on
    driver.define(domain_xml(larger, a_context(virt_type="qemu", directory=Path(INSTANCES) / str(spec.uuid))))
    driver.suspend(spec.uuid)
    domain = seen(driver, spec)
    assert (domain.has_saved_memory, domain.vcpus, domain.memory_mib) == (True, 1, 64)
    assert driver.disks(spec.uuid).live == before.live
    libvirt_host.stop_libvirtd(signal.SIGKILL)
    libvirt_host.start_libvirtd()
    wait_until(lambda: driver.get(spec.uuid), timeout_seconds=10, what="libvirtd answers")
    assert seen(driver, spec).has_saved_memory
    driver.resume(spec.uuid)
    assert (seen(driver, spec).power_state, seen(driver, spec).vcpus) == (PowerState.RUNNING, 1)

    driver.suspend(spec.uuid)
    (file,) = libvirt_host.path("/var/lib/libvirt/qemu/save").glob("*.save")
    with file.open("r+b") as memory:  # as libvirt leaves it when the host loses its power
        memory.write(b"LibvirtQemudPart")
    assert not seen(driver, spec).has_saved_memory
    with pytest.raises(Conflict, match="not saved"):
        driver.resume(spec.uuid)
    driver.start(spec.uuid)
    assert not file.exists()


def test_a_disk_grows_under_its_guest_and_whatever_else_is_asked_of_it_is_refused(
    libvirt_host: NamespacedHost, driver: LibvirtDriver, guests: Guests
) -> None:
    spec = guests.start()
    disk = Path(INSTANCES) / str(spec.uuid) / "disk.qcow2"
    for _ in range(2):
        assert driver.grow_disk(spec.uuid, disk, 3 << 30)
        assert virtual_size_bytes(libvirt_host.path(str(disk))) == 3 << 30
    with pytest.raises(HypervisorRejected, match="larger"):
        driver.grow_disk(spec.uuid, disk.with_name("another.qcow2"), 4 << 30)
    driver.pause(spec.uuid)
    assert driver.grow_disk(spec.uuid, disk, 4 << 30)
    driver.destroy(spec.uuid)
    with pytest.raises(Conflict, match="not up"):
        driver.grow_disk(spec.uuid, disk, 5 << 30)
    assert virtual_size_bytes(libvirt_host.path(str(disk))) == 4 << 30


def test_a_disk_is_copied_as_it_was_while_its_guest_runs_on(
    libvirt_host: NamespacedHost, driver: LibvirtDriver, guests: Guests
) -> None:
    ended = threading.Event()
    driver.subscribe_copies(lambda uuid: ended.set() if uuid == spec.uuid else None)
    spec = guests.define()
    folder = Path(INSTANCES) / str(spec.uuid)
    disk, target = folder / "disk.qcow2", folder / "copy.qcow2"
    outside = libvirt_host.path(str(disk))
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", outside, "64M"], check=True, timeout=20)
    subprocess.run(["qemu-io", "-c", "write -P 0x5a 1M 4M", outside], check=True, timeout=20, stdout=subprocess.DEVNULL)
    with pytest.raises(Conflict, match="not up"):
        driver.begin_copy(spec.uuid, disk, target)
    driver.start(spec.uuid)
    assert driver.begin_copy(spec.uuid, disk, target) is Copying.UNFROZEN, "no agent answers"
    assert ended.wait(30)
    wait_until(
        lambda: not (found := driver.copy_state(spec.uuid)).is_running and not found.problem,
        timeout_seconds=20,
        what="it is whole",
    )
    assert driver.copy_state(spec.uuid).problem, "it is told once"
    assert seen(driver, spec).power_state is PowerState.RUNNING
    for words in (
        ["compare", "-U", "-f", "qcow2", "-F", "qcow2", outside, libvirt_host.path(str(target))],
        ["check", "-q", libvirt_host.path(str(target))],
    ):
        subprocess.run(["qemu-img", *words], check=True, timeout=30, stdout=subprocess.DEVNULL)
    with pytest.raises(Conflict, match="does not run with"):
        driver.begin_copy(spec.uuid, folder / "another.qcow2", target)


def test_a_copy_ends_when_it_is_ended_and_with_its_guest(
    libvirt_host: NamespacedHost, driver: LibvirtDriver, guests: Guests
) -> None:
    spec = guests.define()
    folder = Path(INSTANCES) / str(spec.uuid)
    disk, outside = folder / "disk.qcow2", libvirt_host.path(str(folder / "disk.qcow2"))
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", outside, "2G"], check=True, timeout=20)
    subprocess.run(["qemu-io", "-c", "write -P 0x5a 0 600M", outside], check=True, timeout=60, stdout=subprocess.DEVNULL)
    driver.start(spec.uuid)
    driver.begin_copy(spec.uuid, disk, folder / "first.qcow2")
    for _ in range(2):
        driver.end_copy(spec.uuid)
    wait_until(lambda: not driver.copy_state(spec.uuid).is_running, timeout_seconds=20, what="it has ended")
    driver.begin_copy(spec.uuid, disk, folder / "third.qcow2")
    driver.destroy(spec.uuid)
    found = driver.copy_state(spec.uuid)
    assert (found.is_running, bool(found.problem)) == (False, True)
    driver.end_copy(spec.uuid)


def test_pausing_resuming_and_resetting_keep_the_process(
    libvirt_host: NamespacedHost, driver: LibvirtDriver, guests: Guests
) -> None:
    spec = guests.start()
    before = qemu_pid(libvirt_host, spec)
    for act, expected in (
        (driver.pause, (PowerState.PAUSED, "user")),
        (driver.reboot, (PowerState.PAUSED, "user")),
        (driver.shutdown, (PowerState.PAUSED, "user")),
        (driver.unpause, (PowerState.RUNNING, "unpaused")),
        (driver.reboot, (PowerState.RUNNING, "unpaused")),
        (driver.shutdown, (PowerState.RUNNING, "unpaused")),  # the BIOS does not listen, and nobody waits for it
    ):
        for _ in range(2):
            act(spec.uuid)
            domain = seen(driver, spec)
            assert (domain.power_state, domain.state_reason) == expected
    assert qemu_pid(libvirt_host, spec) == before
    with pytest.raises(Conflict):
        driver.undefine(spec.uuid)


def test_a_guest_that_powers_itself_off_has_shut_down(
    libvirt_host: NamespacedHost, driver: LibvirtDriver, guests: Guests
) -> None:
    initramfs = libvirt_host.path("/var/lib/libvirt/images/probe")
    initramfs.write_bytes(probe_initramfs())
    shutil.copy(a_kernel(), libvirt_host.path("/var/lib/libvirt/images/probe-kernel"))  # QEMU's user reads it there

    def boot_probe(root: ET.Element) -> None:
        system = root.find("os")
        assert system is not None
        for tag, text in (
            ("kernel", "/var/lib/libvirt/images/probe-kernel"),
            ("initrd", "/var/lib/libvirt/images/probe"),
            ("cmdline", "console=ttyS0 quiet"),
        ):
            ET.SubElement(system, tag).text = str(text)
        memory = root.find("memory")
        assert memory is not None
        memory.text = "128"

    spec = guests.start(edit=boot_probe)
    console = libvirt_host.path(f"{INSTANCES}/{spec.uuid}/console.log")
    wait_until(lambda: not seen(driver, spec).is_active, timeout_seconds=60, what="guest is off", evidence=console.read_text)
    assert seen(driver, spec).state_reason == "shutdown"


def test_a_guest_whose_process_died_has_crashed(libvirt_host: NamespacedHost, driver: LibvirtDriver, guests: Guests) -> None:
    spec = guests.start()
    told: list[UUID] = []
    driver.subscribe(told.append, lambda: None)
    os.kill(qemu_pid(libvirt_host, spec), signal.SIGKILL)
    wait_until(lambda: spec.uuid in told, timeout_seconds=10, what="the crash is told")
    wait_until(lambda: not seen(driver, spec).is_active, timeout_seconds=10, what="guest is off")
    assert seen(driver, spec).state_reason == "crashed"


def test_a_start_that_qemu_refuses_says_why_in_one_line(
    libvirt_host: NamespacedHost, driver: LibvirtDriver, guests: Guests
) -> None:
    spec = guests.define()
    disk = libvirt_host.path(f"{INSTANCES}/{spec.uuid}/disk.qcow2")
    disk.write_bytes(b"no qcow2 at all" * 100)
    with pytest.raises(HypervisorRejected, match="not in qcow2 format") as caught:
        driver.start(spec.uuid)
    assert "\n" not in str(caught.value)
    disk.unlink()
    with pytest.raises(HypervisorRejected, match=r"disk\.qcow2"):
        driver.start(spec.uuid)
    assert seen(driver, spec).state_reason == "failed"


def test_a_guest_on_a_network_that_is_not_there_is_refused(driver: LibvirtDriver, guests: Guests) -> None:
    spec = guests.define(addresses=(Address("no-such-network", ADDRESS.mac, ADDRESS.address),))
    with pytest.raises(HypervisorRejected, match="no-such-network"):
        driver.start(spec.uuid)


def test_a_stamp_reaches_the_running_guest_and_its_definition(driver: LibvirtDriver, guests: Guests) -> None:
    spec = guests.start()
    driver.write_stamp(spec.uuid, a_stamp(booted=1))
    assert seen(driver, spec).stamp == a_stamp(booted=1)
    driver.destroy(spec.uuid)
    assert seen(driver, spec).stamp == a_stamp(booted=1)


# -- network ---------------------------------------------------------------------------------------------------------------


def test_dhcp_entries_are_there_now_and_after_the_network_restarts(libvirt_host: NamespacedHost, driver: LibvirtDriver) -> None:
    host = DhcpHost("52:54:c0:a8:7a:3c", "192.168.122.60")
    driver.add_dhcp_host("default", host)
    began = time.monotonic()
    driver.add_dhcp_host("default", host)
    assert time.monotonic() - began < 0.15, "an entry that is there cost a network update"
    assert host in entries(driver)
    assert "192.168.122.60" in libvirt_host.path("/var/lib/libvirt/dnsmasq/default.hostsfile").read_text()
    with pytest.raises(Conflict):
        driver.add_dhcp_host("default", DhcpHost("52:54:00:00:00:01", "192.168.122.60"))

    virsh(libvirt_host, "net-destroy", "default")
    try:
        network = driver.network("default")
        assert network is not None
        assert not network.is_active
        assert host in network.dhcp_hosts
        other = DhcpHost("52:54:c0:a8:7a:3d", "192.168.122.61")
        driver.add_dhcp_host("default", other)  # into the definition, which is all there is
        driver.remove_dhcp_host("default", host)
    finally:
        virsh(libvirt_host, "net-start", "default")
    assert entries(driver) == (other,)
    driver.remove_dhcp_host("default", other)
    assert entries(driver) == ()


def entries(driver: LibvirtDriver) -> tuple[DhcpHost, ...]:
    network = driver.network("default")
    assert network is not None
    return network.dhcp_hosts


def virsh(host: NamespacedHost, *arguments: str) -> None:
    subprocess.run(["virsh", "-q", "-c", host.uri, *arguments], check=True, capture_output=True, timeout=30)


def test_leases_are_what_dnsmasq_gave(libvirt_host: NamespacedHost, driver: LibvirtDriver) -> None:
    # The file that libvirt's helper writes for dnsmasq.
    file = libvirt_host.path("/var/lib/libvirt/dnsmasq/virbr0.status")
    lease = {"mac-address": ADDRESS.mac, "ip-address": ADDRESS.address, "expiry-time": int(time.time()) + 600}
    ended = {"mac-address": "52:54:00:00:00:09", "ip-address": "192.168.122.9", "expiry-time": int(time.time()) - 600}
    file.write_text(json.dumps([lease, ended]))
    try:
        assert driver.leases("default") == (Lease(ADDRESS.mac, ADDRESS.address),)
    finally:
        file.unlink()


def test_libvirts_own_filter_is_found(driver: LibvirtDriver) -> None:
    assert driver.ensure_filter("clean-traffic")
    assert not driver.ensure_filter("no-such-filter")


def test_our_filter_is_defined_once(libvirt_host: NamespacedHost, driver: LibvirtDriver) -> None:
    assert driver.ensure_filter(FILTER_NAME)
    file = libvirt_host.path(f"/etc/libvirt/nwfilter/{FILTER_NAME}.xml")
    before = file.stat().st_ino, file.stat().st_mtime_ns
    assert driver.ensure_filter(FILTER_NAME)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == before


# -- disks that come and go ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine_type", ["pc", "q35"])
def test_a_disk_is_plugged_into_a_guest_that_runs_and_kept_by_one_that_does_not_let_go(
    machine_type: str, libvirt_host: NamespacedHost, driver: LibvirtDriver, guests: Guests
) -> None:
    """The BIOS has no part in unplugging: it is as a guest whose system hangs."""
    spec = guests.start(machine_type=machine_type)
    path = Path(f"{INSTANCES}/{spec.uuid}/volume.raw")
    libvirt_host.path(str(path)).write_bytes(bytes(1 << 20))
    disk = volume_xml(VolumeRef(uuid4(), "data", 0), path, DiskBus.VIRTIO)
    before = driver.disks(spec.uuid)
    for _ in range(2):
        driver.attach_disk(spec.uuid, disk)
        assert driver.disks(spec.uuid) == DomainDisks(before.defined, (*before.live, Disk(str(path), "vdc")))
    libvirt_host.path(f"{INSTANCES}/{spec.uuid}/other.raw").write_bytes(bytes(1 << 20))
    with pytest.raises(HypervisorRejected, match="vdc"):
        driver.attach_disk(spec.uuid, disk.replace("volume.raw", "other.raw"))
    for slot in range(1, 5 if machine_type == "pc" else 1):  # q35 has few free ports, which docs/volumes.md says
        more = Path(f"{INSTANCES}/{spec.uuid}/more-{slot}.raw")
        libvirt_host.path(str(more)).write_bytes(bytes(1 << 20))
        driver.attach_disk(spec.uuid, volume_xml(VolumeRef(uuid4(), "more", slot), more, DiskBus.VIRTIO))
    for _ in range(2 if machine_type == "pc" else 1):  # each takes libvirt's five seconds
        driver.detach_disk(spec.uuid, str(path))
        assert Disk(str(path), "vdc") in driver.disks(spec.uuid).live, "it was only asked"
    driver.destroy(spec.uuid)
    assert driver.disks(spec.uuid) == DomainDisks(before.defined), "the definition never had it"
    driver.detach_disk(spec.uuid, str(path))
    driver.start(spec.uuid)
    driver.detach_disk(spec.uuid, str(path))
    assert driver.disks(spec.uuid) == before


# -- the connection --------------------------------------------------------------------------------------------------------


def test_guests_survive_libvirtd_and_whoever_listens_hears_that_it_is_back(
    libvirt_host: NamespacedHost, driver: LibvirtDriver, guests: Guests
) -> None:
    spec = guests.start()
    driver.write_stamp(spec.uuid, a_stamp(booted=1))
    told: list[UUID] = []
    reconnects: list[float] = []
    driver.subscribe(told.append, lambda: reconnects.append(time.monotonic()))
    descriptors = open_descriptors()
    for restart, with_signal in enumerate((signal.SIGTERM, signal.SIGKILL), start=1):
        before = seen(driver, spec)
        libvirt_host.stop_libvirtd(with_signal)
        with pytest.raises(HypervisorUnavailable, match="is libvirtd running"):
            wait_until(lambda: driver.get(spec.uuid) is None, timeout_seconds=5, what="libvirtd is gone")
        libvirt_host.start_libvirtd()
        wait_until(lambda count=restart: len(reconnects) == count, timeout_seconds=10, what=f"reconnected {restart} times")
        assert seen(driver, spec) == before
        told.clear()
        driver.pause(spec.uuid)
        wait_until(lambda: spec.uuid in told, timeout_seconds=5, what="events arrive again")
        driver.unpause(spec.uuid)
    assert open_descriptors() <= descriptors, "a broken connection keeps its descriptors"


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_domain_that_was_off_before_libvirtd_started_has_no_known_reason(
    libvirt_host: NamespacedHost, driver: LibvirtDriver, guests: Guests
) -> None:
    spec = guests.define()
    libvirt_host.stop_libvirtd()
    libvirt_host.start_libvirtd()
    domain = wait_until(lambda: driver.get(spec.uuid), timeout_seconds=10, what="libvirtd answers")
    assert domain is not None
    assert (domain.power_state, domain.state_reason, domain.stamp) == (PowerState.SHUTOFF, "unknown", a_stamp())


def test_a_hung_libvirtd_holds_nobody_for_ever(
    libvirt_host: NamespacedHost, guests: Guests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libvirt_driver, "KEEPALIVE_SECONDS", 1)
    monkeypatch.setattr(libvirt_driver, "KEEPALIVE_COUNT", 2)
    spec = guests.define()
    impatient = LibvirtDriver(libvirt_host.uri, patience_seconds=1)
    assert impatient.get(spec.uuid)
    freeze(libvirt_host.libvirtd)
    try:
        for _ in range(2):  # in the middle of a call, then while a new connection is opened
            began = time.monotonic()
            with pytest.raises(HypervisorUnavailable):
                impatient.get(spec.uuid)
            assert time.monotonic() - began < 8
    finally:
        libvirt_host.libvirtd.send_signal(signal.SIGCONT)
    wait_until(lambda: answers(impatient, spec), timeout_seconds=10, what="it answers again")
    impatient.close()


def answers(driver: LibvirtDriver, spec: InstanceSpec) -> bool:
    try:
        return driver.get(spec.uuid) is not None
    except HypervisorUnavailable:
        return False


def test_no_libvirtd_is_said_with_where_and_what_to_do(tmp_path: Path) -> None:
    nowhere = LibvirtDriver(f"qemu+unix:///system?socket={tmp_path}/no-socket")
    with pytest.raises(HypervisorUnavailable, match=r"no-socket.*is libvirtd running"):
        nowhere.list()
    nowhere.close()
    with pytest.raises(HypervisorUnavailable, match="closed"):
        nowhere.list()


def test_nothing_of_a_guest_is_left_but_its_files(libvirt_host: NamespacedHost, driver: LibvirtDriver) -> None:
    guests = Guests(libvirt_host, driver)
    spec = guests.start(addresses=(ADDRESS,), filter_name=FILTER_NAME if driver.ensure_filter(FILTER_NAME) else None)
    pid = qemu_pid(libvirt_host, spec)
    guests.remove_all()
    assert not Path(f"/proc/{pid}").exists()
    assert "vnet" not in libvirt_host.run(["ip", "-br", "link"]).stdout
    assert "vnet" not in libvirt_host.run(["ebtables", "--concurrent", "-t", "nat", "-L"]).stdout
    assert sorted(path.name for path in libvirt_host.path(f"{INSTANCES}/{spec.uuid}").iterdir()) == [
        "console.log",
        "disk.qcow2",
    ]
    assert children_of(pid) == []


def test_a_guest_without_an_agent_is_asked_for_its_addresses_in_vain(driver: LibvirtDriver, guests: Guests) -> None:
    spec = guests.start(addresses=(ADDRESS,))
    assert not any(driver.guest_addresses(spec.uuid).values())
    assert driver.guest_addresses(UUID(int=1)) == {}


def test_our_filter_goes_when_nobody_uses_it(libvirt_host: NamespacedHost, driver: LibvirtDriver, guests: Guests) -> None:
    assert driver.ensure_filter(FILTER_NAME)
    guests.start(addresses=(ADDRESS,), filter_name=FILTER_NAME)
    file, other = (libvirt_host.path(f"/etc/libvirt/nwfilter/{name}.xml") for name in (FILTER_NAME, DUAL_FILTER_NAME))
    driver.drop_filter()
    assert file.exists(), "a guest still uses it"
    assert not other.exists(), "nobody uses the other one"
    guests.remove_all()
    driver.drop_filter()
    driver.drop_filter()
    assert not file.exists()


def test_what_a_guest_uses_is_told_by_the_host(driver: LibvirtDriver, guests: Guests) -> None:
    spec = guests.start(addresses=(ADDRESS,))

    def used() -> Any:
        (found,) = [one for one in driver.usage() if one.uuid == spec.uuid]
        return found

    first = used()
    assert first.vcpus == spec.vcpus and first.memory_most_kib == spec.memory_mib << 10 and first.memory_kib > 0
    assert first.disk_read_bytes is not None and first.net_sent_bytes is not None
    wait_until(lambda: used().cpu_ns > first.cpu_ns, timeout_seconds=60, what="its CPU time grows")
