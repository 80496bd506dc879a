"""The parts of the host that the demo needs: libvirt's daemons and its network "default". What ran before is left as it was."""

from __future__ import annotations

import ipaddress
import os
import pwd
import shutil
import socket
import struct
import subprocess
from pathlib import Path
from xml.etree import ElementTree

from demo.processes import Processes
from demo.programs import last_words, run, tail, virsh, wait_for
from demo.settings import METADATA_ADDRESS, NETWORK, DemoError, Settings, read_facts, remember, write_file

NETWORK_XML = Path("/usr/share/libvirt/networks/default.xml")
QEMU_USER = "libvirt-qemu"
KVM = Path("/dev/kvm")
DAEMONS = ("virtlogd", "libvirtd")


def libvirt_answers() -> bool:
    return virsh("version", timeout_seconds=10).returncode == 0


def libvirt_host_uuid() -> str:
    """By which libvirt, and so ecompute, tells this machine from all others; empty where libvirt does not answer."""
    text = virsh("capabilities", timeout_seconds=20).stdout
    return (ElementTree.fromstring(text).findtext("./host/uuid") or "") if text.strip() else ""  # noqa: S314 - libvirt's own


def has_systemd() -> bool:
    return Path("/run/systemd/system").is_dir()


def start_libvirt(settings: Settings, processes: Processes) -> str:
    """Make libvirt answer; says what was done for it.

    Raises:
        DemoError: it does not answer.
    """
    if libvirt_answers():
        return "was running"
    if has_systemd():
        remember(settings, started_libvirt_by="systemd")
        answer = run(["systemctl", "start", "libvirtd"], timeout_seconds=60)
        if answer.returncode:
            raise DemoError(f"systemctl start libvirtd failed: {last_words(answer)}; see: journalctl -u libvirtd")
    else:
        for daemon in DAEMONS:
            if not _daemon_runs(daemon):
                processes.stop(daemon)
                processes.start(daemon, _command(settings, daemon))
    wait_for(
        libvirt_answers, timeout_seconds=30, what="libvirt did not answer", evidence=lambda: tail(processes.log("libvirtd"))
    )
    return "started"


def _command(settings: Settings, daemon: str) -> list[str]:
    """How to start a daemon of libvirt; libvirtd sees an ``/etc/group`` that lets its QEMU use ``/dev/kvm``.

    In a container the device often has the group number of the machine around it. QEMU, which runs as a user of its own, may
    then not open it, and libvirt, which can, takes seconds for every guest to find that out anew.
    """
    program = [_program(daemon)]
    group = kvm_group_that_qemu_lacks()
    if daemon != "libvirtd" or group is None or run(["unshare", "--mount", "true"]).returncode:
        return program
    groups = settings.run_dir / "group"
    write_file(groups, f"{Path('/etc/group').read_text().rstrip()}\netcd-compute-demo-kvm:x:{group}:{QEMU_USER}\n")
    return ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/group && exec "$@"', str(groups), *program]


def kvm_group_that_qemu_lacks() -> int | None:
    """The number of the group of /dev/kvm where that is what keeps libvirt's QEMU from it; else None."""
    try:
        user, device = pwd.getpwnam(QEMU_USER), KVM.stat()
    except (KeyError, OSError):
        return None
    is_open = device.st_mode & 0o006 == 0o006 or device.st_gid in os.getgrouplist(user.pw_name, user.pw_gid)
    return None if is_open or device.st_mode & 0o060 != 0o060 else device.st_gid


def _program(name: str) -> str:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or name


def _daemon_runs(name: str) -> bool:
    """Whether the daemon takes connections: its socket file alone may be left over."""
    path = {"virtlogd": "/run/libvirt/virtlogd-sock", "libvirtd": "/run/libvirt/libvirt-sock"}[name]
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def stop_libvirt(settings: Settings, processes: Processes) -> list[str]:
    """End the daemons that the demo started, unless somebody else's guest needs them; says what was ended."""
    started = [daemon for daemon in reversed(DAEMONS) if processes.running(daemon)]
    by_systemd = read_facts(settings).get("started_libvirt_by") == "systemd"
    if not started and not by_systemd:
        return []
    if libvirt_answers() and virsh("list", "--name").stdout.strip():
        for daemon in started:
            processes.forget(daemon)
        return ["libvirtd stays: it has guests that are not the demo's"]
    if by_systemd:
        units = ["libvirtd.service", "libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket"]
        run(["systemctl", "stop", *units], timeout_seconds=60)
        return ["libvirtd"]
    return [daemon for daemon in started if processes.stop(daemon)]


# -- the network -----------------------------------------------------------------------------------------------------------


def start_network(settings: Settings) -> str:
    """Make libvirt's network "default" active; says what was done for it.

    Raises:
        DemoError: its addresses are in use on this host, or libvirt refuses.
    """
    known = virsh("net-list", "--all", "--name").stdout.split()
    if NETWORK in virsh("net-list", "--name").stdout.split():
        return f"was up on {bridge() or 'its bridge'}"
    description = virsh("net-dumpxml", NETWORK).stdout if NETWORK in known else NETWORK_XML.read_text()
    _refuse_used_addresses(description)
    if NETWORK not in known:
        remember(settings, defined_network=True)
        _must(virsh("net-define", str(NETWORK_XML)), "define")
    remember(settings, started_network=True)
    _must(virsh("net-start", NETWORK, timeout_seconds=60), "start")
    return f"started on {bridge()}"


def _must(answer: subprocess.CompletedProcess[str], what: str) -> None:
    if answer.returncode:
        raise DemoError(
            f'cannot {what} libvirt\'s network "{NETWORK}": {last_words(answer)}; try it yourself: virsh net-{what} {NETWORK}'
        )


def bridge() -> str:
    """The bridge of the network; empty where it is not known."""
    element = _network_xml().find("bridge")
    return element.get("name", "") if element is not None else ""


def _network_xml() -> ElementTree.Element:
    text = virsh("net-dumpxml", NETWORK).stdout
    return ElementTree.fromstring(text) if text.strip() else ElementTree.Element("network")  # noqa: S314 - libvirt's own


def _refuse_used_addresses(description: str) -> None:
    network = ElementTree.fromstring(description)  # noqa: S314 - libvirt's own
    ip, bridge_element = network.find("ip"), network.find("bridge")
    own = bridge_element.get("name", "virbr0") if bridge_element is not None else "virbr0"
    if ip is None:
        return
    wanted = ipaddress.ip_interface(f"{ip.get('address')}/{ip.get('netmask') or ip.get('prefix')}").network
    for interface, used in routes():
        if interface != own and used.prefixlen and used.overlaps(wanted):
            raise DemoError(
                f'{wanted}, the addresses of libvirt\'s network "{NETWORK}", are in use on {interface} of this host ({used}): '
                f"give the network others with: virsh net-edit {NETWORK}"
            )


def routes() -> list[tuple[str, ipaddress.IPv4Network]]:
    """Every IPv4 route of the host: interface and destination."""
    rows = [row.split() for row in Path("/proc/net/route").read_text().splitlines()[1:]]
    return [(row[0], ipaddress.IPv4Network((_address(row[1]), str(_address(row[7]))), strict=False)) for row in rows]


def _address(hexadecimal: str) -> ipaddress.IPv4Address:
    """/proc/net/route writes addresses as the host's integers."""
    return ipaddress.IPv4Address(struct.pack("=I", int(hexadecimal, 16)))


def stop_network(settings: Settings) -> list[str]:
    """Take the network down if the demo started it and no guest of others uses it; says what was done."""
    facts = read_facts(settings)
    if not facts.get("started_network") or not libvirt_answers():
        return []
    if NETWORK in virsh("net-list", "--name").stdout.split():
        if used_by := guests_on_network():
            return [f'the network "{NETWORK}" stays: {", ".join(used_by)} use{"s" if len(used_by) == 1 else ""} it']
        virsh("net-destroy", NETWORK, timeout_seconds=60)
    if facts.get("defined_network"):
        virsh("net-undefine", NETWORK)
    return [f'network "{NETWORK}"']


def guests_on_network() -> list[str]:
    """Names of the running guests that have an interface on it."""
    names = virsh("list", "--name").stdout.split("\n")
    return [name.strip() for name in names if name.strip() and f" {NETWORK} " in _interfaces(name.strip())]


def _interfaces(domain: str) -> str:
    return virsh("domiflist", domain).stdout + " "


def has_metadata_address() -> bool:
    return f" {METADATA_ADDRESS}/" in run(["ip", "-4", "-o", "address", "show"]).stdout


def remove_metadata_address(settings: Settings) -> list[str]:
    """Take the metadata address from the bridge, if the demo's service put it there and left it; says what was done."""
    if not read_facts(settings).get("brought_metadata_address") or not has_metadata_address():
        return []
    answer = run(["ip", "address", "del", f"{METADATA_ADDRESS}/32", "dev", bridge() or "virbr0"])
    return [] if answer.returncode else [f"address {METADATA_ADDRESS}"]
