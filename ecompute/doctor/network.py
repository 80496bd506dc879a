"""The host's network as guests need it: libvirt's network, bridges, the metadata address, forwarding, firewalls, rules, ports.

What is wrong is judged by ``host_network_checks``, as the daemon does; here it is looked at without starting anything.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from common.checkup import Check, Result, failure, ok, warning
from common.config import ComputeConfig
from common.errors import EcomputeError, HypervisorRejected, Permanent
from common.lockfile import LockFile
from common.metadata import LOCK_NAME
from ecompute.anti_spoofing import FILTER_NAME
from ecompute.doctor.scene import Scene
from ecompute.filter_guard import Lost, what_is_lost
from ecompute.host_network import HostNetwork
from ecompute.host_network_checks import HostNetworkFacts, HostTrouble, Trouble, judged
from ecompute.metadata_service import service_problem
from ecompute.nft import packet_filter

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
# The line of the report that each trouble belongs to; what is not named here fails, too.
_LINE = {
    Trouble.NETWORK_MISSING: "network",
    Trouble.NETWORK_DOWN: "network",
    Trouble.NETWORK_NOT_AUTOSTARTED: "network",
    Trouble.BRIDGE_MISSING: "bridge",
    Trouble.BRIDGED_PACKETS_FILTERED: "bridge",
    Trouble.NO_FORWARDING: "forwarding",
    Trouble.STRICT_REVERSE_PATH: "forwarding",
    Trouble.FIREWALLD: "firewall",
    Trouble.UFW: "firewall",
    Trouble.NFT_MISSING: "firewall",
    Trouble.NETWORK_RULES_GONE: "firewall",
    Trouble.SPOOFING_FILTER_MISSING: "spoofing filter",
    Trouble.SPOOFING_FILTER_GONE: "spoofing filter",
}
# Guests run with these, less well.
_WARNINGS = frozenset(
    {
        Trouble.NETWORK_NOT_AUTOSTARTED,
        Trouble.NFT_MISSING,
        Trouble.SPOOFING_FILTER_MISSING,
        Trouble.BRIDGED_PACKETS_FILTERED,
        Trouble.METADATA_ROUTE_ELSEWHERE,
    }
)


def checks(scene: Scene) -> list[Check]:
    return [
        Check("network", lambda: _network(scene), 12),
        Check("metadata service", lambda: _metadata_service(scene)),
        Check("ports", lambda: _ports(scene.config)),
    ]


def _network(scene: Scene) -> Iterator[Result]:
    config = scene.config
    host = HostNetwork(
        config, scene.hypervisor, has_spoofing_filter=_has_filter(scene), is_simulated=scene.is_simulated,
        lost=lambda: _lost(scene), may_start=False,
    )  # fmt: skip
    facts = host.gather()
    own = scene.hypervisor.own_bridges()
    troubles = [trouble for trouble in judged(facts) if not _is_of_our_server(trouble, facts, config)]
    # Where somebody answers at the address it may be the md-server of another configuration, with guests of its own.
    is_served = facts.metadata is not None and facts.metadata.address in facts.metadata.listeners
    for trouble in troubles:
        yield _told(trouble, scene, frozenset() if is_served else own)
    said = {_LINE.get(trouble.kind, "metadata address") for trouble in troubles}
    if scene.is_simulated:
        if not said:
            yield ok("network", f"{config.network.name} of libvirt's simulation")
        return
    for name, text in well(facts).items():
        if name not in said:
            yield ok(name, text)
    if config.metadata.mode == "off":
        yield from _left_address(host, scene, own)


def well(facts: HostNetworkFacts) -> Mapping[str, str]:
    """What each line of the report says where nothing is wrong with it. Pure."""
    lines = {
        "network": f"libvirt's network {facts.network} is up on {facts.network_bridge or 'no bridge'}"
        + (", and started with the host" if facts.network_is_autostarted else ""),
        "bridge": f"{facts.second_bridge} is there" if facts.second_bridge else "guests get no second card (network.bridge)",
        "forwarding": "the host forwards packets, and drops none for the way that they come",
        "firewall": "nothing keeps guests from their metadata; nft is there",
        "spoofing filter": "there" if facts.has_spoofing_filter else "none is wanted (network.filter is null)",
    }
    if facts.metadata is not None:
        where = f"{facts.metadata.address}, port {facts.metadata.port}"
        is_set = facts.metadata.bridge in facts.metadata.interfaces
        state = f"on {facts.metadata.bridge}" if is_set else f"free for md-server on {facts.metadata.bridge}"
        lines["metadata address"] = f"{where}: {state}"
    return lines


def _is_of_our_server(trouble: HostTrouble, facts: HostNetworkFacts, config: ComputeConfig) -> bool:
    """Whether the port is said to be taken by an md-server of this host, which only does not answer: that has its own line."""
    if trouble.kind is not Trouble.METADATA_PORT_TAKEN or facts.metadata is None:
        return False
    is_running = LockFile(config.paths.run_dir / LOCK_NAME).holder() is not None
    return is_running and facts.metadata.address in facts.metadata.listeners


def _has_filter(scene: Scene) -> bool | None:
    wanted = scene.config.network.filter
    if wanted is None or scene.is_simulated:
        return None
    names = scene.hypervisor.filter_names()
    return names is not None and (wanted == FILTER_NAME or wanted in names)  # ours is defined when ecompute starts


def _lost(scene: Scene) -> Lost:
    try:
        return what_is_lost(scene.hypervisor, packet_filter(scene.config.libvirt.uri), scene.config.network.name)
    except EcomputeError:
        return Lost()  # no nft: that has a line of its own


def _told(trouble: HostTrouble, scene: Scene, own_bridges: frozenset[str]) -> Result:
    """Args: own_bridges: those from which a metadata address may be taken."""
    config, name = scene.config, _LINE.get(trouble.kind, "metadata address")
    say = warning if trouble.kind in _WARNINGS else failure
    if trouble.kind is Trouble.NETWORK_DOWN:
        network = config.network.name
        cure = f"virsh net-start {network} && virsh net-autostart {network}"
        return failure(name, f"libvirt's network {network} is down", cure, lambda: _start(scene))
    if trouble.kind is Trouble.NETWORK_NOT_AUTOSTARTED:
        return warning(name, trouble.what, trouble.cure, lambda: _autostart(scene))
    if trouble.kind is Trouble.METADATA_ADDRESS_ELSEWHERE:
        interface = trouble.what.split(" is on ")[1].split(",")[0]
        if interface in own_bridges:  # libvirt's own: only an md-server of ours puts it there
            return failure(name, trouble.what, trouble.cure, lambda: _take_off(config, interface))
    return say(name, trouble.what, trouble.cure)


def _start(scene: Scene) -> str:
    name = scene.config.network.name
    scene.hypervisor.start_network(name)
    return f"started libvirt's network {name}; {_autostart(scene)}"


def _autostart(scene: Scene) -> str:
    name = scene.config.network.name
    try:
        scene.hypervisor.autostart_network(name)
    except HypervisorRejected as error:
        return f"it does not start with the host: {error}"
    return f"the network {name} is started with the host from now on"


def _left_address(host: HostNetwork, scene: Scene, own_bridges: frozenset[str]) -> Iterator[Result]:
    """Under ``metadata.mode: off`` nobody is to answer; an address that stayed has guests wait for an answer."""
    config = scene.config
    if LockFile(config.paths.run_dir / LOCK_NAME).holder() is not None:
        return
    for interface in sorted(host.interfaces_with(config.metadata.address) & own_bridges):
        address = config.metadata.address
        yield warning(
            "metadata address", f"{address} is still on {interface}, and nobody serves it (metadata.mode is off)",
            f"ip address del {address}/32 dev {interface}", lambda interface=interface: _take_off(config, interface),  # type: ignore[misc]
        )  # fmt: skip


def _take_off(config: ComputeConfig, interface: str) -> str:
    """With ``ip``: md-server's own way is shut while one of them waits for the address."""
    command = ["ip", "address", "del", f"{config.metadata.address}/32", "dev", interface]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except subprocess.TimeoutExpired as error:
        raise Permanent(f"{' '.join(command)}: no end within 10 s") from error
    if answer.returncode:
        raise Permanent(f"{' '.join(command)}: {answer.stderr.strip()}")
    return f"took {config.metadata.address} off {interface}"


def _metadata_service(scene: Scene) -> Iterator[Result]:
    """Whether md-server answers, where it is to answer now."""
    config = scene.config
    name = "metadata service"
    if config.metadata.mode == "off":
        yield ok(name, "none (metadata.mode is off)")
        return
    is_external = config.metadata.mode == "external"
    if not is_external and LockFile(config.paths.run_dir / LOCK_NAME).holder() is None and scene.ecompute() is None:
        yield ok(name, "starts with ecompute, which does not run")
        return
    if is_external and scene.is_joining:
        yield ok(name, "starts with md-server.service")
        return
    problem = service_problem(config.metadata)
    if not problem:
        yield ok(name, f"md-server answers at {config.metadata.address}, port {config.metadata.port}")
    elif is_external:
        yield failure(name, problem, "systemctl start md-server")
    elif scene.is_joining:  # an ecompute that runs may be just starting it; whether it is up is seen by being Ready
        yield warning(name, problem, f"see {config.paths.run_dir}/md-server.log, or journalctl -u ecompute, if it stays so")
    else:
        yield failure(name, problem, f"see {config.paths.run_dir}/md-server.log, or journalctl -u ecompute")


def _ports(config: ComputeConfig, path: Path = EPHEMERAL) -> Iterator[Result]:
    try:
        first, last = (int(number) for number in path.read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return
    yield judge_ports(listened_at(config), first, last)


def listened_at(config: ComputeConfig) -> dict[str, int]:
    """The ports of this host at which etcd-compute and what it needs here listen, by configuration key."""
    found = {"metadata.port": config.metadata.port} if config.metadata.mode == "managed" else {}
    if config.metrics.listen:
        found["metrics.listen"] = int(config.metrics.listen.rpartition(":")[2])
    for key, url in (*(("etcd.endpoints", url) for url in config.etcd.endpoints), ("placement.url", config.placement.url)):
        parts = urlsplit(url)
        if parts.port and (parts.hostname or "").startswith(("127.", "localhost", "::1")):
            found[key] = parts.port
    return found


def judge_ports(ports: Mapping[str, int], first: int, last: int) -> Result:
    """Whether outgoing connections, which get ports from *first* to *last*, may take one of *ports*. Pure."""
    inside = {key: port for key, port in ports.items() if first <= port <= last}
    if inside:
        shown = ", ".join(f"{key} ({port})" for key, port in inside.items())
        return warning(
            "ports", f"any outgoing connection may take it before its server starts: {shown}, within {first}-{last}",
            f"choose a port below {first}, or add it to net.ipv4.ip_local_reserved_ports",
        )  # fmt: skip
    return ok("ports", f"{', '.join(str(port) for port in sorted(set(ports.values())))} are taken by no outgoing connection")
