"""What the doctors make of what they found, where breaking the real thing would take another machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from uuid import UUID

import pytest

from common.checkup import Level, Result
from common.config import ComputeConfig, EtcdConfig
from common.etcd_checkup import Member, expiry, judge
from common.host_checkup import judge_versions
from common.model import HostRecord, HostState, OwnerRecord
from common.placement_checkup import judge_clock, skew_of
from ecompute.doctor import daemon, guestfs, hypervisor, machine, network, storage
from ecompute.doctor.daemon import Claims, judge_claims
from ecompute.doctor.leftovers import dead_partials
from ecompute.doctor.storage import Speed
from ecompute.hypervisor import HostInfo
from ecompute.kvm_probe import VirtTypeChoice

OURS, OTHER = UUID(int=1), UUID(int=2)
NOON = "Sat, 21 Nov 2026 12:00:00 GMT"
NOON_UNIX = 1795262400.0


def levels(results: list[Result]) -> dict[str, Level]:
    """The worst level of each name."""
    found: dict[str, Level] = {}
    for result in results:
        if found.get(result.name) is not Level.FAILURE and result.level is not Level.OK:
            found[result.name] = result.level
        found.setdefault(result.name, result.level)
    return found


# -- etcd, Placement, clock --------------------------------------------------------------------------------------------------

WELL = Member("http://e:2379", version="3.5.9", used_bytes=1, quota_bytes=1000, seconds=0.01)


@pytest.mark.parametrize(
    ("members", "name", "level"),
    [
        ([WELL], "etcd", Level.OK),
        ([dataclasses.replace(WELL, problem="no leader")], "etcd", Level.FAILURE),
        ([WELL, Member("http://f:2379", problem="refused")], "etcd", Level.WARNING),
        ([dataclasses.replace(WELL, version="3.3.25")], "etcd version", Level.FAILURE),
        ([dataclasses.replace(WELL, version="3.5.1")], "etcd version", Level.WARNING),
        ([dataclasses.replace(WELL, version="3.4.23")], "etcd version", Level.OK),
        ([WELL, dataclasses.replace(WELL, version="3.4.23")], "etcd version", Level.WARNING),
        ([dataclasses.replace(WELL, used_bytes=799)], "etcd space", Level.OK),
        ([dataclasses.replace(WELL, used_bytes=800)], "etcd space", Level.WARNING),
        ([dataclasses.replace(WELL, used_bytes=950)], "etcd space", Level.FAILURE),
        ([dataclasses.replace(WELL, alarms=("CORRUPT",))], "etcd space", Level.FAILURE),
        ([dataclasses.replace(WELL, quota_bytes=0)], "etcd space", Level.WARNING),
        ([dataclasses.replace(WELL, certificate_ends=NOON_UNIX - 1)], "etcd certificates", Level.FAILURE),
        ([dataclasses.replace(WELL, certificate_ends=NOON_UNIX + 29 * 86400)], "etcd certificates", Level.WARNING),
        ([dataclasses.replace(WELL, certificate_ends=NOON_UNIX + 31 * 86400)], "etcd certificates", Level.OK),
    ],
)
def test_etcd(members: list[Member], name: str, level: Level) -> None:
    assert levels(list(judge(members, EtcdConfig(), now=NOON_UNIX)))[name] is level


def test_what_has_no_end_is_not_spoken_of() -> None:
    assert expiry("x", "the certificate", None, now=NOON_UNIX) is None


@pytest.mark.parametrize(
    ("asked", "answered", "skew"),
    [(0.2, 0.4, 0.0), (0.0, 0.9, 0.0), (-0.5, 0.1, 0.0), (31.0, 31.2, 30.0), (-31.2, -31.0, -31.0), (-5.0, 5.0, 0.0)],
)
def test_skew_is_what_cannot_be_explained_by_the_time_that_asking_took(asked: float, answered: float, skew: float) -> None:
    assert skew_of((NOON, NOON_UNIX + asked, NOON_UNIX + answered)) == pytest.approx(skew)


def test_a_clock_is_compared_with_the_service_that_differs_most_and_nonsense_is_passed_over() -> None:
    moments = {
        "etcd": (NOON, NOON_UNIX, NOON_UNIX),
        "Placement": (NOON, NOON_UNIX + 4, NOON_UNIX + 4),
        "odd": ("now", 0.0, 0.0),
    }
    (result,) = judge_clock(moments)
    assert (result.level, result.text) == (Level.WARNING, "3 s ahead of Placement")
    assert [r.level for r in judge_clock({"odd": ("now", 0.0, 0.0)})] == [Level.WARNING]


# -- the machine -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "virt_type", "level"),
    [({"vmx"}, "kvm", Level.OK), ({"svm"}, "auto", Level.OK), (set(), "auto", Level.WARNING), (set(), "qemu", Level.OK)],
)
def test_the_processor(flags: set[str], virt_type: str, level: Level) -> None:
    assert machine.judge_cpu(frozenset(flags), "x86_64", virt_type).level is level


def test_a_nested_processor_is_sent_to_the_host_above() -> None:
    assert "host above" in machine.judge_cpu(frozenset({"hypervisor"}), "x86_64", "auto").cure
    assert "BIOS" in machine.judge_cpu(frozenset(), "x86_64", "auto").cure


@pytest.mark.parametrize(
    ("seen", "level"), [(24105, Level.OK), (23500, Level.OK), (11700, Level.FAILURE), (5700, Level.FAILURE)]
)
def test_libvirts_figure_of_memory_may_be_that_of_one_numa_node(seen: int, level: Level) -> None:
    assert machine.judge_libvirts_memory(seen, 24105).level is level


def test_a_reserve_that_leaves_nothing() -> None:
    assert machine.judge_memory(2000, 1800, 512).level is Level.OK
    assert machine.judge_memory(2000, 20, 512).level is Level.WARNING
    assert machine.judge_memory(2000, 1800, 2000).level is Level.FAILURE


@pytest.mark.parametrize(
    ("machine_id", "libvirt", "level"),
    [
        ("a" * 32, "78c2cfb1-3d16-4f84-9d4a-fea605848d0d", Level.OK),
        ("a" * 32, None, Level.OK),
        ("", "78c2cfb1-3d16-4f84-9d4a-fea605848d0d", Level.WARNING),
        ("uninitialized", None, Level.WARNING),
        ("a" * 32, "03000200-0400-0500-0006-000700080009", Level.WARNING),
        ("a" * 32, "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF", Level.WARNING),
    ],
)
def test_ids_that_clones_share(machine_id: str, libvirt: str | None, level: Level) -> None:
    assert machine.judge_ids(machine_id, libvirt, is_uuid_configured=False).level is level


# -- hypervisor, network, disk -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("has_firmware_id", "configuration", "level"),
    [
        (True, "", Level.OK),
        (False, '# host_uuid = "x"\nhost_uuid = "0e7d1a2c-1111-4111-8111-111111111111"\n', Level.OK),
        (False, 'host_uuid_source = "machine-id"\n', Level.OK),
        (False, '#host_uuid = "00000000-0000-0000-0000-000000000000"\n', Level.FAILURE),
        (False, "", Level.FAILURE),
    ],
)
def test_an_id_that_libvirt_makes_up_at_each_start(has_firmware_id: bool, configuration: str, level: Level) -> None:
    found = machine.judge_lasting_id(str(OTHER), has_firmware_id=has_firmware_id, configuration=configuration)
    assert found.level is level
    assert not found.cure or f'host_uuid = "{OTHER}"' in found.cure, "the one that it has now stays"


def test_versions_and_machine_types() -> None:
    assert [r.level for r in hypervisor.judge_versions({"libvirt": "8.0.0", "qemu": "7.2.9"})] == [Level.WARNING, Level.OK]
    assert next(hypervisor.judge_versions({"libvirt": "10.0.0"})).level is Level.OK
    info = HostInfo("u", "h", "x86_64", 2, 1000, frozenset(), ("pc-i440fx-7.2", "pc-q35-7.2", "q35"), {})
    assert hypervisor.judge_machines(info, None).level is Level.OK
    assert hypervisor.judge_machines(info, "q35").level is Level.OK
    refused = hypervisor.judge_machines(info, "pc-q35-9.1")
    assert (refused.level, "pc-q35-7.2" in refused.cure) == (Level.FAILURE, True)
    assert hypervisor.judge_machines(dataclasses.replace(info, machine_types=()), None).level is Level.FAILURE


def test_the_ports_that_are_looked_at_are_those_of_this_host() -> None:
    assert network.listened_at(ComputeConfig()) == {
        "metadata.port": 80, "metrics.listen": 9179, "etcd.endpoints": 2379, "placement.url": 8778,
    }  # fmt: skip
    elsewhere = dataclasses.replace(ComputeConfig(), etcd=EtcdConfig(endpoints=("http://10.0.0.1:40000",)))
    assert "etcd.endpoints" not in network.listened_at(elsewhere)
    assert network.judge_ports({"metrics.listen": 33803}, 32768, 60999).level is Level.WARNING
    assert network.judge_ports({"metrics.listen": 9179}, 32768, 60999).level is Level.OK


@pytest.mark.parametrize(
    ("free", "total", "reserved", "level"),
    [(50, 100, 2, Level.OK), (0.5, 100, 0, Level.FAILURE), (5, 100, 10, Level.WARNING), (5, 8, 8, Level.FAILURE)],
)
def test_room_on_the_disk(free: float, total: float, reserved: int, level: Level) -> None:
    assert storage.judge_space(free, total, reserved, "/x").level is level


def test_speed_of_the_disk() -> None:
    assert storage.judge_speed(Speed(200, 0.01), "/x").level is Level.OK
    assert storage.judge_speed(Speed(200, 0.6), "/x").level is Level.WARNING
    assert storage.judge_speed(Speed(4, 0.01), "/x").level is Level.WARNING


def test_measuring_the_disk_leaves_nothing(tmp_path: Path) -> None:
    assert storage.measure(tmp_path).mib_per_second > 0
    assert list(tmp_path.iterdir()) == []


# -- who else is there -------------------------------------------------------------------------------------------------------

ALONE = Claims(OURS, "libvirt-a", "boot-a", "host-a", 42, frozenset({OURS}), OwnerRecord("m", "libvirt-a", "host-a"), {})


def record(**changes: object) -> HostRecord:
    return dataclasses.replace(HostRecord("host-a", "boot-a", UUID(int=9), "libvirt-a", "qemu:///system"), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        (dataclasses.replace(ALONE, hosts={OURS: record()}), {"second ecompute": Level.OK, "ecompute": Level.OK}),
        (
            dataclasses.replace(ALONE, pid=None, on_machine=frozenset()),
            {"second ecompute": Level.OK, "ecompute": Level.WARNING},
        ),
        (
            dataclasses.replace(ALONE, pid=None, on_machine=frozenset(), is_joining=True),
            {"second ecompute": Level.OK, "ecompute": Level.OK},
        ),
        (ALONE, {"second ecompute": Level.OK, "ecompute": Level.FAILURE}),
        (dataclasses.replace(ALONE, is_joining=True), {"second ecompute": Level.OK, "ecompute": Level.OK}),
        (
            dataclasses.replace(ALONE, hosts={OURS: record(state=HostState.DEGRADED)}),
            {"second ecompute": Level.OK, "ecompute": Level.WARNING},
        ),
        (
            dataclasses.replace(ALONE, hosts={OURS: record()}, owner=OwnerRecord("m", "libvirt-b", "host-b")),
            {"second ecompute": Level.FAILURE, "ecompute": Level.OK},
        ),
        (
            dataclasses.replace(ALONE, hosts={OURS: record()}, on_machine=frozenset({OURS, OTHER})),
            {"second ecompute": Level.FAILURE, "ecompute": Level.OK},
        ),
        (
            dataclasses.replace(ALONE, hosts={OURS: record(), OTHER: record()}),
            {"second ecompute": Level.FAILURE, "ecompute": Level.OK},
        ),
        (dataclasses.replace(ALONE, pid=None), {"second ecompute": Level.FAILURE, "ecompute": Level.WARNING}),
    ],
)
def test_who_serves_the_provider(claims: Claims, expected: dict[str, Level]) -> None:
    assert levels(list(judge_claims(claims))) == expected


def test_a_host_that_was_told_to_leave_is_brought_back_by_joining() -> None:
    gone = dataclasses.replace(ALONE, pid=None, on_machine=frozenset(), left="ann@desk at 2026-01-01T00:00:00.000Z")
    (found,) = [result for result in judge_claims(gone) if result.name == "ecompute"]
    assert "told to leave the cluster by ann@desk at 2026" in found.text
    assert found.cure == "ecompute join"


def test_the_cure_of_a_kvm_that_is_not_proven_is_that_of_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "no readable /boot/vmlinuz-* to prove KVM with; install a kernel package"
    monkeypatch.setattr(machine, "choose_virt_type", lambda *_, **__: VirtTypeChoice("qemu", proven=False, reason=reason))
    (found,) = machine._kvm(ComputeConfig())
    assert found.text.endswith("no readable /boot/vmlinuz-* to prove KVM with")
    assert found.cure.startswith("install a kernel package")


@pytest.mark.parametrize(
    ("source", "cure"),
    [
        (None, "ecompute join TOKEN, or: ecompute join http://ETCD:2379 --placement http://PLACEMENT:8778"),
        (Path("/srv/compute.yaml"), "ecompute --config /srv/compute.yaml join"),
    ],
)
def test_what_starts_ecompute_depends_on_its_configuration(source: Path | None, cure: str) -> None:
    """systemd passes its unit over without a word where /etc/etcd-compute/compute.yaml is not there."""
    assert daemon.how_to_start(ComputeConfig(source=source), OURS) == cure
    stopped = dataclasses.replace(ALONE, pid=None, on_machine=frozenset(), hosts={}, start=cure)
    assert [result.cure for result in judge_claims(stopped) if result.name == "ecompute"] == [cure]


def test_who_serves_here_is_read_from_the_names_that_they_hold(tmp_path: Path) -> None:
    sockets = tmp_path / "unix"
    sockets.write_text(
        "Num       RefCount Protocol Flags    Type St Inode Path\n"
        f"0000000000000000: 00000002 00000000 00000000 0002 01 12345 @etcd-compute-{OURS}\n"
        "0000000000000000: 00000002 00000000 00010000 0001 01 12346 /run/etcd-compute/x.sock\n"
        "0000000000000000: 00000002 00000000 00000000 0002 01 12347 @etcd-compute-test-network-1\n"
    )
    assert daemon.served_here(sockets) == {OURS}
    assert daemon.served_here(tmp_path / "none") == frozenset()


def test_versions_of_the_hosts() -> None:
    assert judge_versions({"a": "1.0", "b": "1.0"}, "a", "1.0").level is Level.OK
    mixed = judge_versions({"a": "1.0", "b": "0.9"}, "a", "1.0")
    assert (mixed.level, "0.9: b" in mixed.text) == (Level.WARNING, True)
    assert "restart" in judge_versions({"a": "0.9"}, "a", "1.0").cure


def test_half_made_files_are_dead_only_where_their_writer_is_and_they_are_old(tmp_path: Path) -> None:
    (tmp_path / "a/b/c").mkdir(parents=True)
    dead = tmp_path / "a/b/c" / "disk.qcow2.3999999-0.partial"
    alive, other = tmp_path / "x.1-0.partial", tmp_path / "somebody.partial"
    for path in (dead, alive, other):
        path.touch()
    now = dead.stat().st_mtime
    assert dead_partials(tmp_path, now=now + 10) == []
    assert dead_partials(tmp_path, now=now + 100) == [dead]


# -- libguestfs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("absent", "is_wanted", "has_kernel", "level", "said"),
    [
        ("", False, True, Level.OK, "is there"),
        ("", True, False, Level.WARNING, "no kernel that its appliance could use"),
        ("supermin", False, True, Level.OK, "not installed (supermin missing)"),
        ("supermin", True, True, Level.WARNING, "guestfs.inspect of compute.yaml wants it"),
    ],
)
def test_libguestfs_is_missed_only_by_who_wants_it(
    absent: str, is_wanted: bool, has_kernel: bool, level: Level, said: str
) -> None:  # fmt: skip
    found = guestfs.judge(absent, is_wanted=is_wanted, has_kernel=has_kernel)
    assert (found.name, found.level) == ("libguestfs", level)
    assert said in found.text
    if level is Level.WARNING:
        assert found.cure.startswith("apt-get install")
