"""ecompute killed by SIGKILL after every single step of everything it does, and in the middle of those with several effects.

The program kills itself (``tests/support/ecompute_with_failpoint.py``), is started again with nothing in its way, and has to
finish what was begun: one guest, one claim, nothing left over, and all other invariants (``tests/support/invariants.py``).
``STEPS_OF`` says which steps each flow takes; it has to name all that there are. Guests that one case leaves running are what
the next ones stop, reboot and destroy.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator
from uuid import UUID

import pytest

from common.model import DiskContent, GuestFile, Phase
from common.placement import Claim
from common.volume_records import VolumePlace
from ecompute.hypervisor import DomainDisks, Stamp
from ecompute.libvirt_driver import LibvirtDriver
from ecompute.machine import Step
from ecompute.volume_decisions import VolumeStep
from tests.support.clients import Clients
from tests.support.cluster import STATE_DIR, Cluster, Node, running_cluster
from tests.support.hosts import HostNetwork
from tests.support.ledger import Ledger
from tests.support.linux_disks import SYSTEM, make_disk
from tests.support.processes import wait_until
from tests.support.small_guest import make_small_guest
from tests.support.snapshot import World, look

pytestmark = pytest.mark.timeout(900)  # the waits have bounds of their own, which are long: other tests run beside these

STEPS_OF: dict[str, tuple[Step, ...]] = {
    "build": (
        Step.RESERVE_NETWORK, Step.FETCH_IMAGE, Step.BUILD_DISK, Step.WRITE_METADATA, Step.DEFINE, Step.START, Step.MARK_BOOTED,
    ),
    "build with rules": (Step.WRITE_RULES,),
    "build with a changed disk": (Step.BUILD_DISK,),
    "pause": (Step.PAUSE,),
    "unpause": (Step.UNPAUSE,),
    "suspend": (Step.SUSPEND,),
    "resume": (Step.RESUME,),
    "stop a suspended guest": (Step.RESUME,),
    "reboot a suspended guest hard": (Step.DROP_MEMORY,),
    "revert a suspended guest": (Step.DROP_MEMORY,),
    "stop": (Step.SHUTDOWN,),
    "stop a deaf guest": (Step.SHUTDOWN, Step.DESTROY),
    "start": (Step.START,),
    "reboot": (Step.SHUTDOWN, Step.START, Step.MARK_BOOTED),
    "reboot hard": (Step.DESTROY,),
    "destroy": (
        Step.DESTROY, Step.UNDEFINE, Step.REMOVE_FILES, Step.RELEASE_NETWORK, Step.RELEASE, Step.FORGET,
    ),
    "reschedule": (Step.UNDEFINE, Step.REMOVE_FILES, Step.RELEASE_NETWORK, Step.SWAP_CLAIM, Step.MOVE_SPEC),
    "give up": (Step.RELEASE,),  # what comes before is as in a reschedule
    "regain a lost claim": (Step.ASSERT_ALLOCATION,),
    "adopt": (Step.ACKNOWLEDGE,),
    "revert": (Step.DESTROY, Step.RESTORE_DISK),  # what comes before and after is as elsewhere
    "rebuild": (Step.PREPARE_DISK, Step.DESTROY, Step.REPLACE_DISK),
    "grow": (Step.GROW_DISK,),
    "grow while it is off": (Step.GROW_DISK,),
    "regain a right claim": (Step.FIT_CLAIM,),
    "attach a volume": (Step.ATTACH_VOLUME,),
    "detach a volume": (Step.DETACH_VOLUME,),
}  # fmt: skip
STEPS_OF_VOLUMES: dict[str, tuple[VolumeStep, ...]] = {
    "create a volume": (VolumeStep.MAKE,),
    "detach a volume": (VolumeStep.FREE,),
    "regain a volume's claim": (VolumeStep.ASSERT_CLAIM,),
    "remove a volume": (VolumeStep.REMOVE, VolumeStep.RELEASE, VolumeStep.FORGET),
}

# Between two effects of one step, and around what is said of it.
INSIDE: dict[str, tuple[str, ...]] = {
    "build": (
        "before:status:Building",
        "after:status:Building",
        "before:FetchImage:pathlib.Path.rename",
        "before:BuildDisk:pathlib.Path.rename",
        "before:ReserveNetwork:pathlib.Path.rename",
        "after:WriteMetadata:common.metadata._replace_file",
        "before:status:Running",
        "after:status:Running",
    ),
    "build with a changed disk": ("after:BuildDisk:os.chown",),  # lent to whoever changes it
    "build of a known image": ("before:FetchImage:pathlib.Path.rename",),
    "build of a copy": (
        "after:BuildDisk:ecompute.disk_copies._copy_piece",
        "before:BuildDisk:pathlib.Path.rename",
        "after:BuildDisk",
    ),
    "suspend": ("before:Suspend:ecompute.libvirt_driver.LibvirtDriver.suspend",),
    "resume": ("after:Resume:ecompute.libvirt_driver.LibvirtDriver.resume",),
    "start": ("after:Start:ecompute.libvirt_driver.LibvirtDriver.write_stamp",),
    "reboot": ("after:Shutdown:ecompute.libvirt_driver.LibvirtDriver.write_stamp",),
    "destroy": (
        "after:RemoveFiles:common.metadata.MetadataStore.remove",
        "after:RemoveFiles:common.metadata.MetadataStore._drop_links",
        "after:RemoveFiles:pathlib.Path.rename",
        "after:ReleaseNetwork:pathlib.Path.unlink",
        "before:Forget:common.etcd_store.EtcdStore.commit",
    ),
    "reschedule": (
        "before:status:Rescheduling",
        "after:status:Rescheduling",
        "before:MoveSpec:common.etcd_store.EtcdStore.commit",
    ),
    "give up": ("before:status:Failed",),
    "revert": ("before:RestoreDisk:ecompute.qemu_img.run", "after:RestoreDisk:ecompute.qemu_img.run"),
    "rebuild": ("after:ReplaceDisk:pathlib.Path.rename",),
    "grow": ("before:GrowDisk:ecompute.libvirt_driver.LibvirtDriver.grow_disk",),
    "grow while it is off": ("before:GrowDisk:ecompute.image_conversion.change",),
    "create a volume": ("before:MakeVolume:pathlib.Path.rename",),
    "attach a volume": ("after:AttachVolume:ecompute.libvirt_driver.LibvirtDriver.define",),
    "detach a volume": ("before:FreeVolume:common.etcd_store.EtcdStore.commit",),
    "remove a volume": ("before:ForgetVolume:common.etcd_store.EtcdStore.commit",),
}


class Bench:
    """The cluster of this module, its first host being the one that is killed, and the guests that are left for later cases."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.node, self.ledger = cluster, cluster.nodes[0], Ledger()
        self.clients = Clients(cluster, self.ledger)
        self.running: list[UUID] = []
        self.is_spoilt = False
        self._images = itertools.count()

    def create(self, *, is_known: bool = False, **more: object) -> UUID:
        """Ask for a guest whose image nobody has yet, or which is known by another address."""
        return self.clients.create(self.node, **{"image": self.image(is_known=is_known), **more})

    def image(self, *, is_known: bool = False) -> str:
        number = next(self._images)
        content = b"" if is_known else str(number).encode()
        return str(make_small_guest(self.cluster.directory / f"image-{number}.raw", content=content))

    def create_on_linux(self, **more: object) -> UUID:
        """As ``create``, of an image whose disk holds a system's files as well."""
        image = make_disk(self.cluster.directory / f"linux-{next(self._images)}.qcow2", SYSTEM, boots=True)
        return self.clients.create(self.node, **{"image": str(image), **more})

    def guest(self) -> UUID:
        """One that runs on the first host, and is up."""
        if not self.running:
            self.running.append(self.create())
            self.settle()
        uuid = self.running.pop()
        self.wait_up(uuid, after=0)
        return uuid

    def boots(self, uuid: UUID) -> int:
        return look(self.cluster).host(self.node.provider).boots[uuid]

    def wait_up(self, uuid: UUID, *, after: int) -> None:
        """Wait until it has booted once more than *after* times; no later than that it is counted again, or told to go down."""
        wait_until(
            lambda: self.boots(uuid) > after, timeout_seconds=120, what="the guest has booted", evidence=self.cluster.evidence
        )

    def disk_gib(self, uuid: UUID) -> int:
        spec = look(self.cluster).spec_of(uuid)
        assert spec is not None
        return spec.disk_gib

    def wait_grown(self, uuid: UUID) -> None:
        """Wait until the disk is as large as its request says."""
        disk, wanted = f"{STATE_DIR}/instances/{uuid}/disk.qcow2", self.disk_gib(uuid) << 30

        def is_grown() -> bool:
            told = self.node.host.run(["qemu-img", "info", "-U", "--output=json", disk]).stdout
            return bool(json.loads(told)["virtual-size"] == wanted)

        wait_until(is_grown, timeout_seconds=120, what="the disk has grown", evidence=self.cluster.evidence)

    def settle(self, timeout_seconds: float = 120) -> World:
        assert not self.is_spoilt, "an earlier case left the cluster in disorder; see there"
        self.is_spoilt = True
        world = self.ledger.settle(self.cluster, timeout_seconds=timeout_seconds)
        self.is_spoilt = False
        return world

    def strike(self, failpoint: str, act: Callable[[], object], timeout_seconds: float = 120) -> None:
        """Do *act*, which has ecompute come to *failpoint*; return when it is dead and another one serves."""
        self.node.arm(failpoint)
        act()
        self.node.wait_ecompute_ended(timeout_seconds=timeout_seconds)
        assert self.node.ecompute is not None
        assert self.node.ecompute.wait() == -9, self.cluster.evidence()
        self.restart()

    def restart(self, failpoint: str = "") -> None:
        self.node.kill_ecompute()
        self.node.start_with_failpoint(failpoint)
        if not failpoint:
            self.cluster.wait_ready(self.node)


@pytest.fixture(scope="module")
def bench(appliance_kernel: None, host_network: HostNetwork, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with running_cluster(tmp_path_factory.mktemp("killed"), host_network, with_ecompute=False) as cluster:
        bench = Bench(cluster)
        bench.node.host.run(
            ["mount", "-o", "remount,size=8g", STATE_DIR]
        )  # room for disks that grow; nothing is written to them
        bench.node.start_with_failpoint()
        cluster.nodes[1].start_ecompute()
        cluster.wait_ready()
        yield bench


def cases() -> list[tuple[str, str]]:
    flows = [*STEPS_OF.items(), *STEPS_OF_VOLUMES.items()]
    steps = [(flow, f"after:{step}") for flow, steps in flows for step in steps]
    return steps + [(flow, point) for flow, points in INSIDE.items() for point in points]


def test_every_step_is_in_a_flow() -> None:
    # Connect is for cards in VLANs, and kernels without VLANs on bridges can have none: tests/unit/test_reconciler.py has it fail.
    # Thaw is for guests with an agent, which these have no room for: tests/unit/test_snapshotter.py and test_disk_changes.py.
    assert {step for steps in STEPS_OF.values() for step in steps} == set(Step) - {Step.NONE, Step.CONNECT, Step.THAW}
    assert {step for steps in STEPS_OF_VOLUMES.values() for step in steps} == set(VolumeStep) - {VolumeStep.NONE}


@pytest.mark.parametrize(("flow", "failpoint"), cases(), ids=lambda part: part.replace(" ", "-"))
def test_killed_once_it_finishes_what_was_begun(bench: Bench, flow: str, failpoint: str) -> None:
    FLOWS[flow](bench, failpoint)


def build(bench: Bench, failpoint: str) -> None:
    bench.strike(failpoint, lambda: bench.running.append(bench.create()))
    bench.settle()


def build_with_rules(bench: Bench, failpoint: str) -> None:
    bench.strike(failpoint, lambda: bench.running.append(bench.create(allow=("tcp:22",))))
    bench.settle()


def build_with_a_changed_disk(bench: Bench, failpoint: str) -> None:
    """It is nothing for later cases: another image, of no system, could not be changed as this one's is."""
    content, made = DiskContent(files=(GuestFile("/etc/motd", "aGk="),)), list[UUID]()
    bench.strike(failpoint, lambda: made.append(bench.create_on_linux(disk_content=content)), timeout_seconds=300)
    bench.settle(timeout_seconds=300)
    bench.clients.destroy(made[0])
    bench.settle()


def build_of_a_known_image(bench: Bench, failpoint: str) -> None:
    """The image is there, it is only noted that it is what another address leads to."""
    bench.running.append(bench.create(is_known=True))
    bench.settle()
    bench.strike(failpoint, lambda: bench.running.append(bench.create(is_known=True)))
    bench.settle()


def build_of_a_copy(bench: Bench, failpoint: str) -> None:
    """The disk is a plain file of its own."""
    bench.node.configure(disk={"mode": "raw"})
    bench.restart()
    try:
        bench.strike(failpoint, lambda: bench.running.append(bench.create()))
        bench.settle()
        assert (bench.node.state("instances") / str(bench.running[-1]) / "disk.raw").is_file()
    finally:
        bench.node.configure()
        bench.restart()


def stop(bench: Bench, failpoint: str) -> None:
    uuid = bench.guest()
    bench.strike(failpoint, lambda: bench.clients.stop(uuid))
    bench.settle()
    bench.clients.start(uuid)
    bench.running.append(uuid)
    bench.settle()


def pause(bench: Bench, failpoint: str) -> None:
    uuid = bench.guest()
    booted = bench.boots(uuid)
    bench.strike(failpoint, lambda: bench.clients.pause(uuid))
    bench.settle()
    goes_on(bench, uuid, booted)


def unpause(bench: Bench, failpoint: str) -> None:
    uuid = bench.guest()
    booted = bench.boots(uuid)
    bench.clients.pause(uuid)
    bench.settle()
    bench.strike(failpoint, lambda: bench.clients.start(uuid))
    goes_on(bench, uuid, booted)


def suspend(bench: Bench, failpoint: str) -> None:
    uuid = bench.guest()
    booted = bench.boots(uuid)
    bench.strike(failpoint, lambda: bench.clients.suspend(uuid))
    bench.settle()
    goes_on(bench, uuid, booted)


def resume(bench: Bench, failpoint: str) -> None:
    uuid, booted = suspended(bench)
    bench.strike(failpoint, lambda: bench.clients.start(uuid))
    goes_on(bench, uuid, booted)


def suspended(bench: Bench) -> tuple[UUID, int]:
    """A guest whose memory is saved, and how often it has booted."""
    uuid = bench.guest()
    booted = bench.boots(uuid)
    bench.clients.suspend(uuid)
    bench.settle()
    return uuid, booted


def goes_on(bench: Bench, uuid: UUID, booted: int) -> None:
    """It is asked to, where it was not, and has not booted again."""
    bench.clients.start(uuid)
    bench.settle()
    assert bench.boots(uuid) == booted
    bench.running.append(uuid)


def stop_a_suspended_guest(bench: Bench, failpoint: str) -> None:
    uuid, booted = suspended(bench)
    bench.strike(failpoint, lambda: bench.clients.stop(uuid))
    bench.settle()
    bench.clients.start(uuid)
    bench.settle()
    bench.wait_up(uuid, after=booted)
    bench.running.append(uuid)


def reboot_a_suspended_guest_hard(bench: Bench, failpoint: str) -> None:
    uuid, booted = suspended(bench)
    bench.strike(failpoint, lambda: bench.clients.reboot(uuid, hard=True))
    bench.settle()
    bench.wait_up(uuid, after=booted)
    bench.running.append(uuid)


def revert_a_suspended_guest(bench: Bench, failpoint: str) -> None:
    """Its memory is dropped: the disk is another one than it knows."""
    uuid = bench.guest()
    booted = bench.boots(uuid)
    bench.cluster.eschedule("snapshot", "create", bench.ledger.known[uuid].name, "suspended")
    bench.clients.suspend(uuid)
    bench.settle()
    written(bench, uuid, 5)
    bench.strike(failpoint, lambda: bench.clients.revert(uuid, "suspended"))
    status = bench.settle().status_of(uuid)
    assert status is not None and status.restored is not None and not status.restored.problem
    assert_holds(bench, uuid, 0)
    bench.wait_up(uuid, after=booted)
    bench.running.append(uuid)


def stop_a_deaf_guest(bench: Bench, failpoint: str) -> None:
    uuid = bench.create(image=str(bench.cluster.deaf_image))
    bench.settle()
    bench.strike(failpoint, lambda: bench.clients.stop(uuid))
    bench.settle()
    bench.clients.destroy(uuid)


def start(bench: Bench, failpoint: str) -> None:
    uuid = bench.guest()
    bench.clients.stop(uuid)
    bench.settle()
    booted = bench.boots(uuid)
    bench.strike(failpoint, lambda: bench.clients.start(uuid))
    bench.settle()
    bench.wait_up(uuid, after=booted)
    bench.running.append(uuid)


def reboot(bench: Bench, failpoint: str, *, hard: bool = False) -> None:
    uuid = bench.guest()
    booted = bench.boots(uuid)
    bench.strike(failpoint, lambda: bench.clients.reboot(uuid, hard=hard))
    bench.settle()
    bench.wait_up(uuid, after=booted)
    assert bench.boots(uuid) == booted + 1
    bench.running.append(uuid)


def reboot_hard(bench: Bench, failpoint: str) -> None:
    reboot(bench, failpoint, hard=True)


def destroy(bench: Bench, failpoint: str) -> None:
    uuid = bench.guest()
    bench.strike(failpoint, lambda: bench.clients.destroy(uuid))
    bench.settle()


def reschedule(bench: Bench, failpoint: str) -> None:
    """QEMU does not work on the first host."""
    bench.node.refuse_guests()
    try:
        moved: list[UUID] = []
        bench.strike(failpoint, lambda: moved.append(bench.create(has_alternates=True)))
        world = bench.settle()
    finally:
        bench.node.refuse_guests(False)
    spec = world.spec_of(moved[0])
    assert spec is not None
    assert world.place_of(moved[0]) == bench.cluster.nodes[1].provider
    assert [move.provider for move in spec.moves] == [bench.node.provider]
    bench.clients.destroy(moved[0])


def give_up(bench: Bench, failpoint: str) -> None:
    """QEMU does not work on the only host."""
    bench.node.refuse_guests()
    try:
        failed: list[UUID] = []
        bench.strike(failpoint, lambda: failed.append(bench.create()))
        status = bench.settle().status_of(failed[0])
    finally:
        bench.node.refuse_guests(False)
    assert status is not None
    assert (status.phase, status.reason) == (Phase.FAILED, "HypervisorRejected")
    bench.clients.destroy(failed[0])


def regain_a_lost_claim(bench: Bench, failpoint: str) -> None:
    uuid = bench.guest()
    held = bench.cluster.placement.consumer(uuid)
    assert held is not None
    bench.cluster.placement.release(uuid, held.generation)
    bench.strike(failpoint, lambda: bench.restart(failpoint))
    bench.settle()
    bench.running.append(uuid)


def adopt(bench: Bench, failpoint: str) -> None:
    """The guest is stamped by another cluster, as after a restore; an operator says that the spec speaks for it."""
    uuid = bench.guest()
    stamp = stamp_as_of_another_cluster(bench.node, uuid)
    past = {"cluster_id": stamp.cluster_id, "spec_revision": stamp.spec_revision}
    bench.strike(failpoint, lambda: bench.clients.edit(uuid, {"adopts": past}))
    bench.settle()
    bench.running.append(uuid)


def create_a_volume(bench: Bench, failpoint: str) -> None:
    made: list[VolumePlace] = []
    bench.strike(failpoint, lambda: made.append(bench.clients.create_volume(bench.node)))
    bench.settle()
    file = bench.node.state("volumes", f"{made[0].uuid}.raw")
    assert file.stat().st_size == 1 << 30
    bench.clients.remove_volume(made[0])
    bench.settle()


def disks_of(bench: Bench, uuid: UUID) -> DomainDisks:
    driver = LibvirtDriver(bench.node.host.uri)
    try:
        return driver.disks(uuid)
    finally:
        driver.close()


def attach_a_volume(bench: Bench, failpoint: str) -> None:
    """To a guest that runs; it is destroyed later, and what is in the volume stays."""
    volume, uuid = bench.clients.create_volume(bench.node), bench.guest()
    bench.settle()
    bench.strike(failpoint, lambda: bench.clients.attach(volume, uuid))
    world = bench.settle()
    disks, status = disks_of(bench, uuid), world.status_of(uuid)
    file = bench.node.state("volumes", f"{volume.uuid}.raw")
    assert [disk.target for disk in disks.live] == [disk.target for disk in disks.defined] == ["vda", "vdc"]
    assert status is not None and status.volumes == (volume.uuid,)
    with file.open("r+b") as disk:
        disk.write(b"precious")
    bench.clients.destroy(uuid)
    world = bench.settle()
    assert world.volumes[volume.provider, volume.uuid][0].attached_to is None
    assert file.read_bytes()[:8] == b"precious"
    bench.clients.remove_volume(volume)
    bench.settle()


def detach_a_volume(bench: Bench, failpoint: str) -> None:
    """From a guest that is off: this one has no system that would let go of a disk."""
    volume, uuid = bench.clients.create_volume(bench.node), bench.guest()
    bench.settle()
    bench.clients.attach(volume, uuid)
    bench.clients.stop(uuid)
    bench.settle()
    bench.strike(failpoint, lambda: bench.clients.detach(volume))
    world = bench.settle()
    assert world.volumes[volume.provider, volume.uuid][0].attached_to is None
    assert [disk.target for disk in disks_of(bench, uuid).defined] == ["vda"]
    bench.clients.destroy(uuid)
    bench.clients.remove_volume(volume)
    bench.settle()


def regain_a_volumes_claim(bench: Bench, failpoint: str) -> None:
    volume = bench.clients.create_volume(bench.node)
    bench.settle()
    placement = bench.cluster.volume_placement
    held = placement.consumer(volume.uuid)
    assert held is not None and placement.is_ours(held)
    placement.release(volume.uuid, held.generation)
    bench.strike(failpoint, lambda: bench.restart(failpoint))
    bench.settle()
    bench.clients.remove_volume(volume)
    bench.settle()


def remove_a_volume(bench: Bench, failpoint: str) -> None:
    volume = bench.clients.create_volume(bench.node)
    bench.settle()
    bench.strike(failpoint, lambda: bench.clients.remove_volume(volume))
    assert bench.settle().volumes == {}


def stamp_as_of_another_cluster(node: Node, uuid: UUID) -> Stamp:
    driver = LibvirtDriver(node.host.uri)
    try:
        domain = driver.get(uuid)
        assert domain is not None and domain.stamp is not None
        stamp = dataclasses.replace(domain.stamp, cluster_id=domain.stamp.cluster_id - 1)
        driver.write_stamp(uuid, stamp)
        return stamp
    finally:
        driver.close()


def written(bench: Bench, uuid: UUID, pattern: int) -> None:
    """Write something that the guest's image has not, while it is off."""
    bench.node.host.run(["qemu-io", "-c", f"write -P {pattern} 512k 64k", disk_of(uuid)])


def assert_holds(bench: Bench, uuid: UUID, pattern: int) -> None:
    """That the disk of a guest that runs has it."""
    bench.node.host.run(["qemu-io", "-r", "-U", "-c", f"read -P {pattern} 512k 64k", disk_of(uuid)])


def disk_of(uuid: UUID) -> str:
    return f"{STATE_DIR}/instances/{uuid}/disk.qcow2"


def revert(bench: Bench, failpoint: str) -> None:
    uuid = bench.guest()
    name = bench.ledger.known[uuid].name
    bench.cluster.eschedule("snapshot", "create", name, "before", "--request-id", "the same")
    bench.clients.stop(uuid)
    bench.settle()
    written(bench, uuid, 5)
    bench.clients.start(uuid)
    bench.settle()
    bench.strike(failpoint, lambda: bench.clients.revert(uuid, "before"))
    status = bench.settle().status_of(uuid)
    assert status is not None and status.restored is not None and not status.restored.problem
    assert_holds(bench, uuid, 0)
    bench.running.append(uuid)


def rebuild(bench: Bench, failpoint: str) -> None:
    uuid = bench.guest()
    bench.clients.stop(uuid)
    bench.settle()
    written(bench, uuid, 5)
    bench.clients.start(uuid)
    bench.settle()
    bench.strike(failpoint, lambda: bench.clients.rebuild(uuid, bench.image()))
    status = bench.settle().status_of(uuid)
    assert status is not None and status.rebuilt is not None and not status.rebuilt.problem
    assert_holds(bench, uuid, 0)
    names = {path.name for path in bench.node.state("instances", str(uuid)).iterdir()}
    assert names <= {"disk.qcow2", "console.log", "rebuilt.json", "restored.json"}
    bench.running.append(uuid)


def grow(bench: Bench, failpoint: str) -> None:
    uuid = bench.guest()
    bench.strike(failpoint, lambda: bench.clients.resize(uuid, DISK_GB=bench.disk_gib(uuid) + 1))
    bench.settle()
    bench.wait_grown(uuid)
    bench.running.append(uuid)


def grow_while_it_is_off(bench: Bench, failpoint: str) -> None:
    uuid = bench.guest()
    bench.clients.stop(uuid)
    bench.settle()
    bench.strike(failpoint, lambda: bench.clients.resize(uuid, DISK_GB=bench.disk_gib(uuid) + 1))
    bench.settle()
    bench.wait_grown(uuid)
    bench.clients.start(uuid)
    bench.settle()
    bench.running.append(uuid)


def regain_a_right_claim(bench: Bench, failpoint: str) -> None:
    """As an eschedule leaves it that dies between the claim and the request: it holds more than is asked for."""
    uuid, provider = bench.guest(), bench.node.provider
    held = bench.cluster.placement.consumer(uuid)
    assert held is not None
    more = {provider: {**held.allocations[provider], "VCPU": 2}}
    bench.strike(failpoint, lambda: bench.cluster.placement.replace_consumers([Claim(uuid, more, held.generation)]))
    bench.settle()
    bench.running.append(uuid)


FLOWS: dict[str, Callable[[Bench, str], None]] = {
    "build": build, "build with rules": build_with_rules, "build with a changed disk": build_with_a_changed_disk, "build of a known image": build_of_a_known_image, "build of a copy": build_of_a_copy, "stop": stop,
    "pause": pause, "unpause": unpause, "suspend": suspend, "resume": resume, "stop a suspended guest": stop_a_suspended_guest,
    "reboot a suspended guest hard": reboot_a_suspended_guest_hard, "revert a suspended guest": revert_a_suspended_guest,
    "stop a deaf guest": stop_a_deaf_guest, "start": start, "reboot": reboot,
    "reboot hard": reboot_hard, "destroy": destroy, "reschedule": reschedule, "give up": give_up,
    "regain a lost claim": regain_a_lost_claim, "adopt": adopt, "revert": revert, "rebuild": rebuild, "grow": grow,
    "grow while it is off": grow_while_it_is_off, "regain a right claim": regain_a_right_claim,
    "create a volume": create_a_volume, "attach a volume": attach_a_volume, "detach a volume": detach_a_volume,
    "regain a volume's claim": regain_a_volumes_claim, "remove a volume": remove_a_volume,
}  # fmt: skip


# -- again and again ---------------------------------------------------------------------------------------------------------


def strike_before_each(bench: Bench, steps: tuple[Step, ...], act: Callable[[], object]) -> None:
    """Do *act*, and have each process that goes on with it die just before the next of *steps*."""
    for number, step in enumerate(steps):
        if number == 0:
            bench.node.arm(f"before:{step}")
            act()
        else:
            bench.node.start_with_failpoint(f"before:{step}")
        bench.node.wait_ecompute_ended()
        assert bench.node.ecompute is not None
        assert bench.node.ecompute.wait() == -9, f"it did not die before {step}\n{bench.cluster.evidence()}"
    bench.restart()


@pytest.fixture
def many_attempts(bench: Bench) -> Iterator[None]:
    bench.node.configure(builder={"max_attempts": 20, "resync_every_seconds": 5})
    bench.restart()
    yield
    bench.node.configure()
    bench.restart()


def test_killed_before_every_step_of_one_life(bench: Bench, many_attempts: None) -> None:
    guest: list[UUID] = []
    strike_before_each(bench, STEPS_OF["build"], lambda: guest.append(bench.create()))
    bench.settle()
    strike_before_each(bench, STEPS_OF["reboot"], lambda: bench.clients.reboot(guest[0]))
    bench.settle()
    strike_before_each(bench, STEPS_OF["destroy"], lambda: bench.clients.destroy(guest[0]))
    bench.settle()


def test_killed_before_every_step_of_one_move(bench: Bench) -> None:
    bench.node.refuse_guests()
    try:
        guest: list[UUID] = []
        strike_before_each(bench, STEPS_OF["reschedule"], lambda: guest.append(bench.create(has_alternates=True)))
        assert bench.settle().place_of(guest[0]) == bench.cluster.nodes[1].provider
    finally:
        bench.node.refuse_guests(False)
    bench.clients.destroy(guest[0])


def test_a_request_that_kills_its_builder_moves_on_when_its_attempts_are_used_up(bench: Bench) -> None:
    guest: list[UUID] = []
    strike_before_each(bench, (Step.START,) * 3, lambda: guest.append(bench.create(has_alternates=True)))
    world = bench.settle()
    spec = world.spec_of(guest[0])
    assert spec is not None
    assert [(move.provider, move.reason) for move in spec.moves] == [(bench.node.provider, "AttemptsExhausted")]
    bench.clients.destroy(guest[0])


@pytest.mark.parametrize("is_killed", [False, True], ids=["", "and-ecompute-too"])
def test_the_target_of_a_move_dies_between_the_claim_and_the_spec(bench: Bench, is_killed: bool) -> None:
    """There is no third host: the request has failed, and the claim that stands at the dead host is given back."""
    other = bench.cluster.nodes[1]
    bench.settle()  # it may have something of an earlier case to finish
    bench.node.refuse_guests()
    try:
        bench.node.arm(f"hold before:{Step.MOVE_SPEC}")
        uuid = bench.create(has_alternates=True)
        bench.node.wait_held()
        other.stop_ecompute()
        if is_killed:
            bench.node.kill_ecompute()
            bench.restart()
        bench.node.arm("")
        status = bench.settle().status_of(uuid)
    finally:
        bench.node.refuse_guests(False)
    assert status is not None and status.phase is Phase.FAILED
    other.start_ecompute()
    bench.cluster.wait_ready(other)
    bench.clients.destroy(uuid)
    bench.settle()


def test_a_guest_that_has_run_and_cannot_start_is_neither_moved_nor_built_anew(bench: Bench) -> None:
    uuid = bench.create(has_alternates=True)
    bench.settle()
    bench.clients.stop(uuid)
    bench.settle()
    bench.node.refuse_guests()
    try:
        bench.strike(f"before:{Step.START}", lambda: bench.clients.start(uuid))
        status = bench.settle().status_of(uuid)
    finally:
        bench.node.refuse_guests(False)
    assert status is not None
    assert (status.phase, status.reason) == (Phase.STOPPED, "StartFailed")
    bench.clients.stop(uuid)
    bench.settle()
    bench.clients.start(uuid)
    status = bench.settle().status_of(uuid)
    assert status is not None and status.phase is Phase.RUNNING
    bench.clients.destroy(uuid)


def test_killed_between_the_two_halves_of_a_takeover(bench: Bench) -> None:
    """The host key of the process before is deleted, the new one not made yet."""
    uuid = bench.guest()
    bench.restart("after:startup:common.etcd_store.EtcdStore.delete")
    bench.node.wait_ecompute_ended()
    bench.restart()
    bench.settle()
    bench.running.append(uuid)


def test_in_the_end_nothing_is_left(bench: Bench) -> None:
    for uuid in bench.running:
        bench.clients.destroy(uuid)
    world = bench.settle()
    assert (world.specs, world.instances, world.names) == ({}, {}, {})
    assert [(host.guests, host.claims, host.folders) for host in world.hosts] == [({}, {}, frozenset())] * 2
