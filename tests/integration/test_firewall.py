"""Forwards and filters in the kernel: a host, two guests on its bridge and somebody outside, each in a network of its own.

The host's own firewall refuses what begins from outside, as libvirt's does for guests behind NAT, in both of its forms.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from common.config import ComputeConfig, EtcdConfig, LibvirtConfig, MetadataConfig, PathsConfig
from common.model import Address, Forward, ImageRef, InstanceSpec, IpAddress
from ecompute import agent
from ecompute.firewall import GuestRules, Way, bridge_rules, forward_rules, interface_name
from ecompute.firewall_keeper import FirewallKeeper
from ecompute.nft import FirewallMissing, Nftables
from ecompute.nft_watch import FirewallWatch
from tests.fakes.packet_filter import FakePacketFilter
from tests.support.namespace import Namespace
from tests.support.processes import wait_until

SUBNET, SUBNET6 = "192.168.122", "fd00:122:"
OUTSIDE, HOST = "10.9.0.2", "10.9.0.1"
OUTSIDE6, HOST6 = "fd00:9::2", "fd00:9::1"
QUIET_SECONDS = 0.4  # a packet that has not come by then was dropped; here they take a millisecond

# With the first, bridged packets pass the host's own chains too, as where Docker is; with the second they do not.
IPTABLES = """\
sysctl -q -w net.bridge.bridge-nf-call-iptables=1
iptables -N LIBVIRT_FWI
iptables -A FORWARD -i virbr0 -o virbr0 -j ACCEPT
iptables -A LIBVIRT_FWI -d 192.168.122.0/24 -o virbr0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -A LIBVIRT_FWI -o virbr0 -j REJECT --reject-with icmp-port-unreachable
iptables -A FORWARD -j LIBVIRT_FWI
ip6tables -A FORWARD -i virbr0 -o virbr0 -j ACCEPT
ip6tables -A FORWARD -i virbr0 -j ACCEPT
ip6tables -A FORWARD -o virbr0 -j REJECT
"""
NFTABLES = """\
sysctl -q -w net.bridge.bridge-nf-call-iptables=0
nft add table ip libvirt_network
nft add chain ip libvirt_network forward '{ type filter hook forward priority filter; policy accept; }'
nft add chain ip libvirt_network guest_input
nft add rule ip libvirt_network guest_input iif virbr0 oif virbr0 accept
nft add rule ip libvirt_network guest_input oif virbr0 ip daddr 192.168.122.0/24 ct state established,related accept
nft add rule ip libvirt_network guest_input oif virbr0 reject
nft add rule ip libvirt_network forward jump guest_input
"""


class Guest:
    """A network behind the host's bridge, at .<number>, whose interface on the host is called as a filtered guest's is."""

    def __init__(self, host: Namespace, folder: Path, number: int) -> None:
        folder.mkdir()
        self.number, self.network = number, Namespace(folder)
        self.mac = f"52:54:00:00:00:{number:02x}"
        self.address, self.address6 = f"{SUBNET}.{number}", f"{SUBNET6}:{number}"
        self.card = Address("default", self.mac, self.address, more=(IpAddress(self.address6, 64),))
        self.spec = InstanceSpec(UUID(int=number), f"guest{number}", ImageRef("/i"), {"VCPU": 1})
        port = interface_name(self.mac)
        plug(host, self.network, port, "eth0", mac=self.mac)
        lines(host, f"ip link set {port} master virbr0 up")
        lines(
            self.network,
            f"ip addr add {self.address}/24 dev eth0\nip addr add {self.address6}/64 dev eth0 nodad\nip link set eth0 up\n"
            f"ip route add default via {SUBNET}.1\nip -6 route add default via {SUBNET6}:1",
        )

    def asking(self, **changes: object) -> InstanceSpec:
        return dataclasses.replace(self.spec, **changes)  # type: ignore[arg-type]


class Site:
    """All of it, with the keeper of the host's rules."""

    def __init__(self, folder: Path, refusing: str) -> None:
        for name in ("host", "outside"):
            (folder / name).mkdir()
        self.folder, self.host, self.outside = folder, Namespace(folder / "host"), Namespace(folder / "outside")
        lines(
            self.host,
            f"ip link add virbr0 type bridge\nip addr add {SUBNET}.1/24 dev virbr0\nip addr add {SUBNET6}:1/64 dev virbr0 nodad\n"
            "ip link set virbr0 up\nsysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
        )
        plug(self.host, self.outside, "up0", "eth0")
        lines(self.host, f"ip addr add {HOST}/24 dev up0\nip addr add {HOST6}/64 dev up0 nodad\nip link set up0 up")
        lines(
            self.outside,
            f"ip addr add {OUTSIDE}/24 dev eth0\nip addr add {OUTSIDE6}/64 dev eth0 nodad\nip link set eth0 up\n"
            f"ip route add default via {HOST}\nip -6 route add default via {HOST6}",
        )
        lines(self.host, refusing)
        self.foreign = self.ruleset()
        self.first, self.second = Guest(self.host, folder / "g1", 51), Guest(self.host, folder / "g2", 52)
        self.new_keeper()

    def new_keeper(self) -> None:
        """As after a restart of ecompute."""
        self.keeper = FirewallKeeper(self.folder / "firewall", interfaces=lambda mac: {interface_name(mac)})

    def give(self, guest: Guest, **changes: object) -> tuple[str, ...]:
        """Put in force what *guest* is to ask for; the notes."""
        return self.host.call(lambda: self.keeper.write(guest.asking(**changes), (guest.card,)))

    def is_current(self, guest: Guest, **changes: object) -> bool:
        return self.host.call(lambda: self.keeper.look(guest.asking(**changes), (guest.card,))).is_current

    def ruleset(self) -> str:
        return self.host.run("nft", "--stateless", "list", "ruleset").stdout

    def close(self) -> None:
        for network in (self.first.network, self.second.network, self.outside, self.host):
            network.close()


def lines(network: Namespace, text: str) -> None:
    network.run("sh", "-ec", text)


def plug(one: Namespace, other: Namespace, here: str, there: str, *, mac: str = "") -> None:
    address = ["address", mac] if mac else []
    one.run("ip", "link", "add", here, "type", "veth", "peer", "name", there, *address)
    # The other side moves by the number that this machine knows that network by: ip inside has processes of its own.
    subprocess.run(
        [str(c) for c in one.in_network("ip", "link", "set", there, "netns", str(other.pid))], check=True, timeout=10
    )


@pytest.fixture(params=[IPTABLES, NFTABLES], ids=["iptables", "nftables"])
def either_site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    with contextlib.closing(Site(tmp_path, request.param)) as made:
        yield made


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with contextlib.closing(Site(tmp_path, IPTABLES)) as made:
        yield made


# -- who reaches whom ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(network: Namespace, port: int) -> Iterator[socket.socket]:
    """A server by TCP in *network*, of both families."""
    server = network.call(lambda: socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True))
    with server:
        server.settimeout(5)
        yield server


def connected(network: Namespace, address: str, port: int, *, timeout: float = 5) -> socket.socket:
    return network.call(lambda: socket.create_connection((address, port), timeout=timeout))


def reaches(network: Namespace, address: str, port: int) -> bool:
    """Whether a connection from *network* comes about at once."""
    try:
        connected(network, address, port, timeout=QUIET_SECONDS).close()
    except OSError:
        return False
    return True


def talks(client: socket.socket, server: socket.socket) -> bool:
    """Whether an accepted connection carries bytes both ways."""
    client.settimeout(5)
    server.settimeout(5)
    client.sendall(b"ask")
    answered = server.recv(3) == b"ask"
    server.sendall(b"say")
    return answered and client.recv(3) == b"say"


def pings(network: Namespace, address: str) -> bool:
    """Whether *address* answers an echo request from *network*."""
    is6 = ":" in address

    def ask() -> bool:
        family, protocol = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if is6 else (socket.AF_INET, socket.IPPROTO_ICMP)
        with socket.socket(family, socket.SOCK_RAW, protocol) as raw:
            raw.settimeout(QUIET_SECONDS)
            raw.sendto(struct.pack(">BBHHH", 128, 0, 0, 7, 1) if is6 else echo_request(), (address, 0))
            with contextlib.suppress(TimeoutError):
                while True:
                    answer = raw.recv(2048)
                    kind = answer[0] if is6 else answer[(answer[0] & 15) * 4]
                    if kind == (129 if is6 else 0):
                        return True
        return False

    return network.call(ask)


def echo_request() -> bytes:
    """With its checksum, which the kernel makes for ICMPv6 alone."""
    body = struct.pack(">BBHHH", 8, 0, 0, 7, 1)
    total = sum(struct.unpack(">4H", body))
    return struct.pack(">BBHHH", 8, 0, ~(total + (total >> 16)) & 0xFFFF, 7, 1)


@contextlib.contextmanager
def udp(network: Namespace, port: int = 0) -> Iterator[socket.socket]:
    def made() -> socket.socket:
        opened = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        opened.bind(("::", port))
        opened.settimeout(QUIET_SECONDS)
        return opened

    with network.call(made) as opened:
        yield opened


def hears(receiver: socket.socket) -> bool:
    with contextlib.suppress(TimeoutError):
        receiver.recvfrom(64)
        return True
    return False


def mapped(address: str) -> str:
    return address if ":" in address else f"::ffff:{address}"


# -- forwards -----------------------------------------------------------------------------------------------------------


def test_a_port_of_the_host_leads_to_a_guest_for_whoever_is_outside_for_the_host_and_for_the_guests(either_site: Site) -> None:
    site = either_site
    with serving(site.first.network, 80) as server:
        assert not reaches(site.outside, site.first.address, 80), "the host's own firewall refuses"
        assert site.give(site.first, forwards=(Forward(8080, 80),)) == ()
        client = connected(site.outside, HOST, 8080)
        accepted, peer = server.accept()
        assert peer[0] == mapped(OUTSIDE), "the guest sees who it is that asks"
        assert talks(client, accepted)
        for network, address in (
            (site.host, HOST),
            (site.second.network, HOST),
            (site.host, f"{SUBNET}.1"),
        ):
            connected(network, address, 8080).close()
            server.accept()[0].close()
        assert not reaches(site.outside, HOST, 80)
        assert not reaches(site.outside, site.first.address, 80), "only by the port that was forwarded"
        assert not reaches(site.host, "127.0.0.1", 8080)


def test_a_port_leads_to_a_guest_by_ipv6_as_well(either_site: Site) -> None:
    site = either_site
    with serving(site.first.network, 80) as server:
        site.give(site.first, forwards=(Forward(8080, 80),), allow=("tcp:80@fd00::/8",))
        for network, address in ((site.outside, HOST6), (site.host, HOST6), (site.second.network, HOST6)):
            connected(network, address, 8080).close()
            server.accept()[0].close()
        assert not reaches(site.outside, HOST, 8080), "by IPv4 its rules let nobody in"
    site.host.call(lambda: site.keeper.remove(site.first.spec.uuid))
    assert site.ruleset() == site.foreign


def test_udp_is_forwarded_and_answered(either_site: Site) -> None:
    either_site.give(either_site.first, forwards=(Forward(5300, 53, "udp"),))
    with udp(either_site.first.network, 53) as server, udp(either_site.outside) as client:
        client.sendto(b"?", (mapped(HOST), 5300))
        question, peer = server.recvfrom(9)
        server.sendto(b"!", peer)
        answer, source = client.recvfrom(9)
        assert (question, answer, source[:2]) == (b"?", b"!", (mapped(HOST), 5300))


def test_an_established_connection_survives_a_change_and_a_restart_and_what_is_removed_leaves_nothing(
    either_site: Site,
) -> None:
    site = either_site
    site.give(site.first, forwards=(Forward(8080, 80),), allow=("tcp:80",))
    with serving(site.first.network, 80) as server:
        client = connected(site.outside, HOST, 8080)
        accepted, _ = server.accept()
        site.give(site.second, forwards=(Forward(8081, 80),), allow=())
        site.new_keeper()
        assert not site.is_current(site.first, forwards=(Forward(8080, 80),), allow=("tcp:80",)), (
            "nobody knows, after a restart"
        )
        site.host.call(site.keeper.keep)
        assert site.is_current(site.first, forwards=(Forward(8080, 80),), allow=("tcp:80",))
        assert talks(client, accepted)
        assert site.give(site.first) == ()
        assert not reaches(site.outside, HOST, 8080)
    site.host.call(lambda: site.keeper.remove(site.second.spec.uuid))
    assert site.ruleset() == site.foreign
    assert list((site.folder / "firewall").iterdir()) == []


def test_what_somebody_flushed_or_put_in_front_is_noticed_and_put_back(either_site: Site) -> None:
    site, asked = either_site, {"forwards": (Forward(8080, 80),), "allow": ("tcp:80",)}
    site.give(site.first, **asked)
    refusing = IPTABLES if "LIBVIRT_FWI" in site.foreign else NFTABLES
    with serving(site.first.network, 80):
        site.host.run("nft", "flush", "ruleset")
        lines(site.host, refusing)
        assert not site.is_current(site.first, **asked)
        site.host.call(site.keeper.keep)
        assert site.is_current(site.first, **asked)
        assert reaches(site.outside, HOST, 8080)
        site.host.run("nft", "flush", "chain", "bridge", "etcd_compute", f"in_{site.first.spec.uuid.hex}")
        assert not site.is_current(site.first, **asked), "one chain alone is noticed as well"
        site.give(site.first, **asked)
        # As libvirt does when it sets up its network anew: before all that is there.
        front = (
            "iptables -D FORWARD -j LIBVIRT_FWI; iptables -I FORWARD 1 -j LIBVIRT_FWI"
            if refusing == IPTABLES
            else "nft insert rule ip libvirt_network forward jump guest_input"
        )
        lines(site.host, front)
        assert not reaches(site.outside, HOST, 8080)
        site.host.call(site.keeper.keep)
        assert reaches(site.outside, HOST, 8080)
        assert site.is_current(site.first, **asked)


def test_a_flush_is_noticed_by_itself_and_what_is_put_back_is_no_news(site: Site) -> None:
    site.give(site.first, allow=("tcp:80",), forwards=(Forward(8080, 80),))
    looks: list[bool] = []

    def keep(is_thorough: bool) -> None:
        site.host.call(lambda: site.keeper.keep(is_thorough=is_thorough))
        looks.append(is_thorough)

    stop = threading.Event()
    watch = site.host.call(lambda: FirewallWatch(keep, pause_seconds=0.05))
    thread = threading.Thread(target=watch.run, args=(stop,))
    thread.start()
    try:
        site.host.run("nft", "flush", "ruleset")
        wait_until(
            lambda: "etcd_compute" in site.ruleset() and len(looks) == 2, timeout_seconds=20, what="our rules are back",
            evidence=site.ruleset,
        )  # fmt: skip
        assert site.is_current(site.first, allow=("tcp:80",), forwards=(Forward(8080, 80),))
        thread.join(1.0)
        assert looks == [False, False], "its own changes made it look once more, and no more than that"
    finally:
        stop.set()
        watch.wake()
        thread.join(5)
    assert not thread.is_alive()


def test_a_trial_changes_nothing_and_says_what_would_be_refused(site: Site) -> None:
    site.give(site.first, allow=("tcp:22",), forwards=(Forward(8080, 80),))
    before, kernel = site.ruleset(), Nftables()
    rules = [GuestRules(UUID(int=n), "", ("tcp:23",), ("ecx",), (Way("tcp", 9, 9, "192.0.2.1"),)) for n in (7, 51)]
    for text in (bridge_rules(rules), forward_rules("ip", rules), bridge_rules([])):
        site.host.call(lambda t=text: kernel.load(t, is_trial=True))
    with pytest.raises(FirewallMissing):
        site.host.call(lambda: kernel.load(bridge_rules(rules).replace("23", "no-such-port"), is_trial=True))
    assert site.ruleset() == before


class Refusing(Nftables):
    """A kernel that does not take one rule that reads well."""

    def load(self, script: str, *, is_trial: bool = False) -> None:
        super().load(script.replace("dport 666 ", "dport no-such-port "), is_trial=is_trial)


def test_a_guest_whose_rules_the_kernel_refuses_is_shut_and_the_others_are_as_they_were(site: Site) -> None:
    site.keeper = FirewallKeeper(site.folder / "firewall", Refusing(), interfaces=lambda mac: {interface_name(mac)})
    asked = {"allow": ("tcp:22",), "forwards": (Forward(8080, 22),)}
    site.give(site.first, **asked)
    with serving(site.first.network, 22), serving(site.second.network, 22):
        assert reaches(site.host, site.second.address, 22)
        with pytest.raises(FirewallMissing, match="it is shut"):
            site.give(site.second, allow=("tcp:22", "tcp:666"), forwards=(Forward(9090, 22),))
        assert not reaches(site.host, site.second.address, 22)
        assert not reaches(site.outside, HOST, 9090), "the port leads there, and its rules let nobody in"
        assert reaches(site.outside, HOST, 8080)
        assert not reaches(site.host, site.first.address, 23)
        assert site.is_current(site.first, **asked)
        site.host.run("nft", "flush", "ruleset")
        site.host.call(site.keeper.keep)
        assert reaches(site.host, site.first.address, 22)
        assert not reaches(site.host, site.second.address, 22)
    for guest in (site.first, site.second):
        site.host.call(lambda uuid=guest.spec.uuid: site.keeper.remove(uuid))
    assert "etcd_compute" not in site.ruleset()


def test_what_others_wrote_in_another_encoding_is_in_nobodys_way(site: Site) -> None:
    lines(site.host, NFTABLES)
    site.host.run("sh", "-ec", "printf 'add rule ip libvirt_network forward accept comment \"caf\\351\"\\n' | nft -f -")
    assert site.give(site.first, forwards=(Forward(8080, 80),), allow=("tcp:80",)) == ()
    site.host.call(site.keeper.keep)
    assert site.is_current(site.first, forwards=(Forward(8080, 80),), allow=("tcp:80",))


def test_a_port_that_is_taken_stays_whose_it_is_and_comes_free(site: Site) -> None:
    assert site.give(site.first, forwards=(Forward(8080, 80),)) == ()
    wanted = {"forwards": (Forward(8080, 81), Forward(9090, 82))}
    with serving(site.host, 9090), serving(site.second.network, 81), serving(site.second.network, 82):
        notes = site.give(site.second, **wanted)
        assert [note.partition(";")[0] for note in notes] == [
            "port 8080/tcp of this host is taken by instance guest51",
            "port 9090/tcp of this host is taken by a process (ss -lntp sport = :9090)",
        ]
        assert site.is_current(site.second, **wanted), "more is not to be had now"
        site.host.call(lambda: site.keeper.remove(site.first.spec.uuid))
        assert not site.is_current(site.second, **wanted), "now it is"
        assert len(site.give(site.second, **wanted)) == 1
        assert reaches(site.outside, HOST, 8080)
    assert not site.is_current(site.second, **wanted)
    assert site.give(site.second, **wanted) == ()
    with serving(site.host, 9090), serving(site.second.network, 82) as server:
        assert site.is_current(site.second, **wanted), "it was there first"
        connected(site.outside, HOST, 9090).close()
        server.accept()[0].close()


# -- filters ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shut(site: Site) -> Site:
    """The first guest lets in what begins at port 22, from its neighbour alone at port 23, and pings by IPv6 from there."""
    neighbour = site.second.address
    site.give(site.first, allow=("tcp:22", f"tcp:23@{neighbour}/32", "udp:5000-5001", f"icmp@{SUBNET6}:/64"))
    return site


def test_only_what_is_allowed_comes_in_from_the_host_and_from_the_guest_next_door(shut: Site) -> None:
    first, second = shut.first, shut.second
    with serving(first.network, 22), serving(first.network, 23), serving(first.network, 24):
        for network, addresses in (
            (shut.host, (first.address, first.address6)),
            (second.network, (first.address, first.address6)),
        ):
            for address in addresses:
                assert reaches(network, address, 22)
                assert not reaches(network, address, 24)
                assert reaches(network, address, 23) == (network is second.network and address == first.address)
    with serving(second.network, 24):
        assert reaches(shut.host, second.address, 24), "who asked for no filter has none"
    assert pings(second.network, first.address6)
    assert not pings(second.network, first.address)
    assert pings(shut.host, second.address)


def test_answers_come_in_by_tcp_by_udp_and_by_ping_in_both_families(shut: Site) -> None:
    first, second = shut.first, shut.second
    with serving(second.network, 24) as server:
        for address in (second.address, second.address6):
            client = connected(first.network, address, 24)
            assert talks(client, server.accept()[0])
    for address in (second.address, second.address6):
        assert pings(first.network, address)
        with udp(first.network) as client, udp(second.network, 53) as asked, udp(second.network, 54) as other:
            client.sendto(b"?", (mapped(address), 53))
            _, peer = asked.recvfrom(9)
            other.sendto(b"x", peer)
            assert not hears(client), "only the one that was asked"
            shut.give(second, allow=())  # the rules of all are written anew
            asked.sendto(b"!", peer)
            assert hears(client)
            shut.give(second)


def test_udp_comes_in_where_it_is_allowed_be_it_in_pieces_and_nowhere_else_be_it_to_everybody(shut: Site) -> None:
    first, second = shut.first, shut.second
    with udp(first.network, 5000) as open_port, udp(first.network, 5002) as shut_port, udp(second.network) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for address in (first.address, first.address6):
            sender.sendto(b"x", (mapped(address), 5000))
            assert hears(open_port)
            sender.sendto(b"x" * 4000, (mapped(address), 5000))
            assert hears(open_port)
            sender.sendto(b"x", (mapped(address), 5002))
            assert not hears(shut_port)
        sender.sendto(b"x", (mapped(f"{SUBNET}.255"), 5002))
        assert not hears(shut_port)
        # A frame to all cards with this guest's own address in it, which Linux would take.
        assert send_frame(second.network, b"\xff" * 6, ip_udp(second.address, first.address, 5002)) > 0
        assert not hears(shut_port)
        assert send_frame(second.network, b"\xff" * 6, ip_udp(second.address, first.address, 5000)) > 0
        assert hears(open_port)


def send_frame(network: Namespace, target: bytes, packet: bytes) -> int:
    def send() -> int:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("eth0", 0x0800))
            return raw.send(target + raw.getsockname()[4] + b"\x08\x00" + packet)

    return network.call(send)


def ip_udp(source: str, target: str, port: int) -> bytes:
    udp_part = struct.pack(">HHHH", 999, port, 9, 0) + b"x"
    head = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp_part), 1, 0, 9, 17, 0, socket.inet_aton(source), socket.inet_aton(target)
    )
    total = sum(struct.unpack(">10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    return head[:10] + struct.pack(">H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + head[12:] + udp_part


def test_nothing_but_answers(site: Site) -> None:
    site.give(site.first, allow=())
    with serving(site.first.network, 22), serving(site.second.network, 22):
        assert not reaches(site.second.network, site.first.address, 22)
        assert not reaches(site.host, site.first.address6, 22)
        assert not pings(site.second.network, site.first.address6)
        assert reaches(site.first.network, site.second.address, 22)
        site.give(site.first, allow=("all",))
        assert reaches(site.second.network, site.first.address, 22)
        assert pings(site.second.network, site.first.address6)


def test_a_forward_reaches_a_guest_only_where_its_own_rules_let_it(site: Site) -> None:
    forward = (Forward(8080, 80),)
    with serving(site.first.network, 80):
        for allow, is_let_in in (((), False), (("tcp:80@10.9.0.0/24",), True), (("tcp:80@10.8.0.0/24",), False)):
            notes = site.give(site.first, allow=allow, forwards=forward)
            assert reaches(site.outside, HOST, 8080) == is_let_in
            assert len(notes) == (not allow)


def test_many_at_once_are_told_to_the_kernel_together(site: Site) -> None:
    guests = [InstanceSpec(UUID(int=100 + n), f"g{n}", ImageRef("/i"), {}, allow=("tcp:22",)) for n in range(20)]

    def write(spec: InstanceSpec) -> None:
        card = Address("default", f"52:54:00:00:01:{spec.uuid.int % 256:02x}", "192.168.122.99")
        site.host.call(lambda: site.keeper.write(spec, (card,)))

    threads = [threading.Thread(target=write, args=(spec,)) for spec in guests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    listed = site.host.run("nft", "list", "table", "bridge", "etcd_compute").stdout
    wait_until(lambda: listed.count("chain in_") == 20, timeout_seconds=1, what="all are there", evidence=lambda: listed)
    site.host.call(site.keeper.remove_all)
    assert site.ruleset() == site.foreign


# -- the daemon ---------------------------------------------------------------------------------------------------------


def test_what_shuts_a_guest_is_in_force_before_etcd_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = FakePacketFilter()
    monkeypatch.setattr(agent, "packet_filter", lambda _: kernel)
    spec = InstanceSpec(UUID(int=9), "web", ImageRef("/i"), {}, allow=("tcp:22",))
    FirewallKeeper(tmp_path / "state" / "firewall", kernel).write(spec, (Address("default", "52:54:00:00:00:09", ""),))
    kernel.flush()
    config = ComputeConfig(
        uuid=UUID(int=77), name="h1", paths=PathsConfig(tmp_path / "state", tmp_path / "run"), metadata=MetadataConfig(mode="off"),
        libvirt=LibvirtConfig("test:///default", "test"), etcd=EtcdConfig(("http://127.0.0.1:1",), deadline_seconds=0.5),
    )  # fmt: skip
    stop = threading.Event()
    daemon = threading.Thread(target=agent.Agent(config, stop).run)
    daemon.start()
    try:
        wait_until(lambda: "bridge" in kernel.tables, timeout_seconds=20, what="its rules are there", evidence=lambda: "")
    finally:
        stop.set()
        daemon.join(20)
    assert not daemon.is_alive()
    assert f"in_{spec.uuid.hex}" in kernel.tables["bridge"]
