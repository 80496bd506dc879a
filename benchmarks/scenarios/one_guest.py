"""One guest: from a request to a QEMU that runs, to an address, to ssh, and back to nothing; the image is in the host's cache.

Ours is the Python API of a warm client: its connections are open and its scheduler is made. The floor is ``qemu-img create``
and libvirt's ``createXML`` of the very same domain by a bare script, together with one candidates query and one claim, which
are timed in the same run; back it is ``destroy`` and ``unlink``, and nothing for Placement and etcd. When QEMU runs libvirt's
event says, for both. Whole programs, each from its start: ``eschedule`` beside the API, and beside virt-install of the same
domain. Last a guest with a kernel: when its address is known, which has to be before its QEMU begins, and when its ssh answers,
beside the same image started by bare libvirt, whose address and metadata are there beforehand.
"""

from __future__ import annotations

import statistics
import subprocess
import time
import uuid as uuids
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import UUID

import libvirt

from benchmarks.guests import MEMORY_MIB, QUERY, STARTED, Floor, GuestHost, floor_pair, guest_host
from benchmarks.in_guest import introduce, qemu_began, ssh_answers
from benchmarks.measure import Bench, Figure, Outcome, ratio, turn_about
from benchmarks.tools import virt_install
from common.metadata import MetadataDocument, MetadataStore
from common.model import Address
from ecompute.libvirt_xml import dhcp_host_text, network_of
from eschedule.follow import View
from tests.support.processes import ROOT
from tests.support.small_guest import make_small_guest

TINY_MEMORY_MIB = 128
PATIENCE_SECONDS = 60.0
Samples = dict[str, list[float]]


def run(bench: Bench) -> Outcome:
    image = make_small_guest(bench.directory / "guest.raw")
    with guest_host(bench.directory, metadata={"mode": "managed"}) as host:
        floor = host.floor(image)
        bench.say(f"to a running QEMU and back, {bench.runs} times")
        samples = _made(bench, host, floor, image)
        if bench.is_check:
            return Outcome(_guarded(samples))
        bench.say(f"as whole programs, {bench.runs} times")
        programs = _programs(bench, host, floor, image)
        bench.say(f"to an answer by ssh, {bench.runs} times")
        boots = _boots(bench, host)
    return Outcome([*_guarded(samples), *_further(samples, programs), *_boot_figures(boots)])


# --- To a running QEMU and back ------------------------------------------------------------------------------------------


def _made(bench: Bench, host: GuestHost, floor: Floor, image: Path) -> Samples:
    aside: Samples = defaultdict(list)

    def ours() -> float:
        host.wait_at_rest()
        made = host.create(host.request(image))
        aside["told"].append(made.told_seconds)
        aside["gone, ours"].append(host.destroy(made.instances))
        return made.running_seconds

    def bare() -> float:
        host.wait_at_rest()
        made = floor.create()
        aside["gone, floor"].append(floor.destroy(made.instances))
        return made.running_seconds + _placement(host, aside)

    samples = turn_about(bench.runs, ours=ours, floor=bare)
    return {**samples, **{label: seconds[1:] for label, seconds in aside.items()}}  # the first of each does not count


def _placement(host: GuestHost, aside: Samples) -> float:
    """How long one candidates query and one claim take."""
    placement, consumer = host.cluster.placement, uuids.uuid4()
    began = time.perf_counter()
    found = placement.candidates(QUERY.format(memory=MEMORY_MIB, disk=1), 10)
    placement.claim(consumer, found.candidates[0].allocations)
    took = time.perf_counter() - began
    aside["candidates and claim"].append(took)
    held = placement.consumer(consumer)
    assert held is not None, "the claim was made"
    placement.release(consumer, held.generation)
    return took


def _guarded(samples: Mapping[str, Sequence[float]]) -> list[Figure]:
    return [
        Figure(
            "one-guest.running", "request → QEMU running, against the floor, a candidates query and a claim",
            ratio(samples, "ours", "floor"), at_most=1.5, margin=0.3,
            samples=_some(samples, "ours", "floor", "candidates and claim"),
        ),
        Figure(
            "one-guest.gone", "destroyed, until nothing is left, against the floor",
            ratio(samples, "gone, ours", "gone, floor"), at_most=1.3, margin=0.3,
            samples=_some(samples, "gone, ours", "gone, floor"),
        ),
    ]  # fmt: skip


# --- As whole programs ---------------------------------------------------------------------------------------------------


def _programs(bench: Bench, host: GuestHost, floor: Floor, image: Path) -> Samples:
    command = virt_install()
    contenders = {"API": lambda: _by_api(host, image), "eschedule": lambda: _by_process(host, image)}
    if command is not None:
        contenders["virt-install"] = lambda: _by_virt_install(host, floor, command)
    return turn_about(bench.runs, **contenders)


def _by_api(host: GuestHost, image: Path) -> float:
    host.wait_at_rest()
    made = host.create(host.request(image))
    host.destroy(made.instances)
    return made.running_seconds


def _by_process(host: GuestHost, image: Path) -> float:
    host.wait_at_rest()
    query = QUERY.format(memory=MEMORY_MIB, disk=1)
    name = f"vm-{uuids.uuid4().hex[:8]}"
    began = time.perf_counter()
    host.cluster.eschedule(query, image, "--name", name)
    item = host.cluster.store.get(host.cluster.keys.name(name))
    assert item is not None, "the instance has a name"
    instance = UUID(item.value)
    took = host.moments.last([instance], STARTED) - began
    host.destroy([instance])
    return took


def _by_virt_install(host: GuestHost, floor: Floor, command: Sequence[str]) -> float:
    """The overlay by qemu-img and the domain by virt-install, as far as it has options for what ours has."""
    host.wait_at_rest()
    instance, pair = uuids.uuid4(), floor_pair(0)
    began = time.perf_counter()
    disk = f"path={floor.make_disk(instance)},format=qcow2,bus=virtio,cache=writeback,discard=unmap"
    nic = f"network=default,mac={pair.mac},model=virtio,filterref.filter=etcd-compute"
    options = [
        "--connect", host.node.host.uri, "--name", f"floor-{instance}", "--uuid", str(instance), "--virt-type", "qemu",
        "--memory", str(MEMORY_MIB), "--vcpus", "1", "--cpu", "mode=maximum", "--import", "--disk", disk, "--network", nic,
        "--graphics", "none", "--controller", "usb,model=none", "--osinfo", "detect=off,require=off",
        "--noautoconsole", "--transient",
        "--xml", "./devices/interface/filterref/parameter/@name=IP",
        "--xml", f"./devices/interface/filterref/parameter/@value={pair.address}",
    ]  # fmt: skip
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"virt-install: {done.stderr}{done.stdout}"
    took = host.moments.last([instance], STARTED) - began
    floor.destroy([instance])
    return took


def _further(samples: Mapping[str, Sequence[float]], programs: Mapping[str, Sequence[float]]) -> list[Figure]:
    beyond = (statistics.median(programs["eschedule"]) - statistics.median(programs["API"])) * 1000
    figures = [
        Figure(
            "one-guest.told", "request → status Running, against the same", ratio(samples, "told", "floor"), at_most=1.5,
            margin=0.3, samples=_some(samples, "told", "floor"),
        ),
        Figure(
            "one-guest.process", "by the program eschedule: beyond the warm API", beyond, "ms", at_most=300,
            samples=_some(programs, "eschedule", "API"),
        ),
    ]  # fmt: skip
    if "virt-install" in programs:
        says = "by the program eschedule, against virt-install"
        labels = ("eschedule", "virt-install")
        figures.append(
            Figure("one-guest.virt-install", says, ratio(programs, *labels), margin=0.3, samples=_some(programs, *labels))
        )
    return figures


# --- To an answer by ssh -------------------------------------------------------------------------------------------------


def _boots(bench: Bench, host: GuestHost) -> Samples:
    built = subprocess.run([ROOT / "packaging/build-tiny-image.sh"], check=True, capture_output=True, text=True, timeout=300)
    image = Path(built.stdout.split()[-1])
    floor = host.floor(image, memory_mib=TINY_MEMORY_MIB)
    _serve(host)
    aside: Samples = defaultdict(list)

    def ours() -> float:
        host.wait_at_rest()
        addresses: dict[str, float] = {}
        host.on_view = lambda view: _note_address(view, addresses)
        made = host.create(host.request(image, memory_mib=TINY_MEMORY_MIB))
        ((address, known),) = addresses.items()
        began = qemu_began(made.instances[0])
        aside["address known"].append(known - made.began)
        aside["QEMU began"].append(began - made.began)
        took = ssh_answers(host.node.host, address) - made.began
        host.destroy(made.instances)
        return took

    def bare() -> float:
        host.wait_at_rest()
        made = floor.create()
        took = ssh_answers(host.node.host, floor_pair(0).address) - made.began
        floor.destroy(made.instances)
        return took

    samples = turn_about(bench.runs, ours=ours, floor=bare)
    return {**samples, **{label: seconds[1:] for label, seconds in aside.items()}}


def _note_address(view: View, addresses: dict[str, float]) -> None:
    if view.status is not None and view.status.addresses:
        addresses.setdefault(view.status.addresses[0].address, time.perf_counter())


def _serve(host: GuestHost) -> None:
    """Give the floor's guest an address and metadata, and have the host know all guests' MACs."""
    network, pair = host.connection.networkLookupByName("default"), floor_pair(0)
    network.update(
        libvirt.VIR_NETWORK_UPDATE_COMMAND_ADD_LAST, libvirt.VIR_NETWORK_SECTION_IP_DHCP_HOST, -1, dhcp_host_text(pair),
        libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE,
    )  # fmt: skip
    address = Address("default", pair.mac, pair.address, 24, "192.168.122.1")
    MetadataStore(host.state / "metadata").write(MetadataDocument(uuids.uuid4(), "floor", "floor", addresses=(address,)))
    for entry in network_of(network.XMLDesc(0), is_active=True).dhcp_hosts:
        introduce(host.node.host, entry)


def _boot_figures(boots: Mapping[str, Sequence[float]]) -> list[Figure]:
    return [
        Figure(
            "one-guest.address", "request → address known, as part of the time until its QEMU begins",
            ratio(boots, "address known", "QEMU began"), at_most=1.0, samples=_some(boots, "address known", "QEMU began"),
        ),
        Figure(
            "one-guest.ssh", "request → ssh answers, against bare libvirt", ratio(boots, "ours", "floor"), at_most=1.03,
            margin=0.1, samples=_some(boots, "ours", "floor"),
        ),
    ]  # fmt: skip


def _some(samples: Mapping[str, Sequence[float]], *labels: str) -> dict[str, Sequence[float]]:
    return {label: samples[label] for label in labels}
