"""md-server and the guests' bridge, in private networks: it starts before the bridge does, the address follows the bridge, a guest
behind it is served, and nothing else is touched.
"""

from __future__ import annotations

import http.client
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from common.metadata import MetadataDocument, MetadataStore
from common.model import Address, IpAddress
from common.nics import link_local_address
from tests.support.namespace import Namespace
from tests.support.processes import spawn, stop, wait_until

METADATA, GUEST = "169.254.169.254", "192.168.122.50"
IPV6, LINK_LOCAL = "fd00:ec2::254", "fe80::a9fe:a9fe"
MAC = "52:54:c0:a8:7a:32"
MD_SERVER = [sys.executable, "-m", "md_server.main"]


class Host:
    """A host's network, md-server's files, and a guest's network behind the host's bridge."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.network, self.guest = Namespace(folder / "host"), Namespace(folder / "guest")
        (folder / "compute.yaml").write_text(f"paths: {{state_dir: {folder}/state, run_dir: {folder}/run}}\n")
        self.arguments = [*MD_SERVER, "--config", str(folder / "compute.yaml")]
        self.log = folder / "md-server.log"
        self.processes: list[subprocess.Popen[bytes]] = []
        document = MetadataDocument(UUID(int=7), "vm", addresses=(Address("default", MAC, GUEST),))
        MetadataStore(folder / "state" / "metadata").write(document)

    def start(self) -> subprocess.Popen[bytes]:
        process = spawn(self.network.in_network(*self.arguments), log=self.log)
        self.processes.append(process)
        wait_until(self.has_started, timeout_seconds=15, what="md-server serves", evidence=self.log.read_text)
        return process

    def has_started(self) -> bool:
        assert self.processes[-1].poll() is None, self.log.read_text()
        return "message=serving" in self.log.read_text()

    def ends(self, *more: str) -> subprocess.CompletedProcess[str]:
        """An md-server that ends by itself."""
        command = [str(c) for c in self.network.in_network(*self.arguments, *more)]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)

    def make_bridge(self, name: str = "virbr0") -> None:
        """As libvirt makes it: the network's address first, then up."""
        for line in (f"link add {name} type bridge", f"addr add 192.168.122.1/24 dev {name}", f"link set {name} up"):
            self.network.run("ip", *line.split())

    def without_ipv6(self) -> None:
        """As libvirt leaves the bridge of a network without addresses of IPv6; to be called before it is made."""
        self.network.run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")

    def make_bridge_of_others(self, name: str) -> None:
        self.network.run("ip", "link", "add", name, "type", "bridge")
        self.network.run("ip", "link", "set", name, "up")

    def plug_guest(self, bridge: str = "virbr0") -> None:
        run, guest = self.network.run, self.guest.run
        run("ip", "link", "add", "tap0", "type", "veth", "peer", "name", "eth0")
        # By its path out here, as the namespace's own /proc does not show the other one's processes.
        subprocess.run(
            self.network.in_network("ip", "link", "set", "eth0", "netns", str(self.guest.pid)), check=True, timeout=10
        )
        run("ip", "link", "set", "tap0", "master", bridge, "up")
        guest("ip", "link", "set", "eth0", "address", MAC)
        guest("sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad")  # usable at once
        guest("ip", "addr", "add", f"{GUEST}/24", "dev", "eth0")
        guest("ip", "link", "set", "eth0", "up")
        guest("ip", "route", "add", "default", "via", "192.168.122.1")
        guest("ip", "-6", "route", "add", "default", "dev", "eth0")

    def addresses(self, interface: str = "virbr0", family: str = "-4") -> list[str]:
        lines = self.network.run("ip", family, "-o", "addr", "show", "dev", interface, check=False).stdout.splitlines()
        return [line.split()[3] for line in lines]

    def wait_for_address(self, interface: str = "virbr0") -> None:
        wanted = f"{METADATA}/32"
        wait_until(
            lambda: wanted in self.addresses(interface),
            timeout_seconds=5,
            what=f"{wanted} on {interface}",
            evidence=self.log.read_text,
        )

    def wait_for_ipv6(self, interface: str = "virbr0") -> None:
        wait_until(
            lambda: {f"{IPV6}/128", f"{LINK_LOCAL}/128"} <= set(self.addresses(interface, "-6")),
            timeout_seconds=5, what=f"the addresses of IPv6 on {interface}", evidence=self.log.read_text,
        )  # fmt: skip

    def wait_for_answer(self, answer: tuple[int, bytes], address: str) -> None:
        """What the guest is told at *address*."""

        def asked() -> bool:
            try:
                return self.guest.call(lambda: ask(address)) == answer
            except OSError:
                return False

        wait_until(asked, timeout_seconds=10, what=f"{answer} at {address}", evidence=self.log.read_text)

    def close(self) -> None:
        for process in self.processes:
            stop(process)
        self.guest.close()
        self.network.close()


def ask(address: str = METADATA) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address, 80, timeout=5)
    connection.request("GET", "/latest/meta-data/instance-id")
    answer = connection.getresponse()
    return answer.status, answer.read()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.close()


def test_started_before_the_bridge_it_serves_a_guest_behind_it_and_again_when_the_bridge_is_made_anew(host):
    process = host.start()
    for _ in range(2):
        host.make_bridge()
        host.wait_for_address()
        assert host.addresses() == ["192.168.122.1/24", f"{METADATA}/32"]  # the network's own stays the first
        host.plug_guest()
        wait_until(
            lambda: host.guest.call(ask) == (200, str(UUID(int=7)).encode()), timeout_seconds=5, what="the guest is served"
        )
        assert host.network.call(ask)[0] == 404  # the host itself is no guest
        host.network.run("ip", "link", "del", "tap0")
        host.network.run("ip", "link", "del", "virbr0")
    assert process.poll() is None
    assert "level=warning" not in host.log.read_text()


def test_a_bridge_that_is_down_is_waited_for(host):
    host.network.run("ip", "link", "add", "virbr0", "type", "bridge")
    host.start()
    host.network.run("ip", "link", "add", "other", "type", "bridge")  # something changes, and is noticed
    assert host.addresses() == []
    host.network.run("ip", "link", "set", "virbr0", "up")
    host.wait_for_address()


def test_the_address_comes_back_when_somebody_takes_it_away(host):
    host.make_bridge()
    host.start()
    host.network.run("ip", "addr", "del", f"{METADATA}/32", "dev", "virbr0")
    host.wait_for_address()


def test_an_end_leaves_the_address_and_a_new_start_finds_it(host):
    host.make_bridge()
    first = host.start()
    assert stop(first) == 0
    assert f"{METADATA}/32" in host.addresses()
    host.log.unlink()
    host.start()
    assert "presence=present" in host.log.read_text()
    assert host.addresses() == ["192.168.122.1/24", f"{METADATA}/32"]


def test_killed_it_leaves_the_address_too(host):
    host.make_bridge()
    stop(host.start(), with_signal=signal.SIGKILL)
    assert f"{METADATA}/32" in host.addresses()


def test_it_touches_no_other_interface(host):
    for name in ("eth1", "virbr1"):
        host.network.run("ip", "link", "add", name, "type", "bridge")
        host.network.run("ip", "link", "set", name, "up")
    host.make_bridge()
    before = host.addresses("eth1"), host.addresses("virbr1"), host.addresses("lo")
    host.start()
    host.wait_for_address()
    assert (host.addresses("eth1"), host.addresses("virbr1"), host.addresses("lo")) == before


def test_the_address_on_another_interface_is_one_clear_line(host):
    host.make_bridge()
    host.network.run("ip", "addr", "add", f"{METADATA}/32", "dev", "lo")
    refused = host.ends()
    assert refused.returncode == 5
    assert [line for line in refused.stderr.splitlines() if line.startswith("md-server: ")] == [
        f"md-server: {METADATA} is on interface lo already, not on virbr0: take it away there (ip address del), "
        "or name that interface as metadata.bridge"
    ]
    assert f"{METADATA}/32" not in host.addresses()


def test_the_address_on_another_interface_later_is_told_and_cured_when_it_goes(host):
    host.start()
    host.network.run("ip", "addr", "add", f"{METADATA}/32", "dev", "lo")
    host.make_bridge()
    wait_until(lambda: "is on interface lo already" in host.log.read_text(), timeout_seconds=5, what="a warning")
    assert f"{METADATA}/32" not in host.addresses()
    host.network.run("ip", "addr", "del", f"{METADATA}/32", "dev", "lo")
    host.wait_for_address()


def test_removing_takes_this_address_alone_and_twice_is_harmless(host):
    host.make_bridge()
    host.network.run("ip", "addr", "add", "169.254.1.1/16", "dev", "virbr0")
    process = host.start()
    host.wait_for_ipv6()
    stop(process)
    for said in (f"{METADATA}, {IPV6}, {LINK_LOCAL} removed from virbr0\n", f"{METADATA} was not on virbr0\n"):
        removed = host.ends("--remove-address")
        assert (removed.returncode, removed.stdout, removed.stderr) == (0, said, "")
        assert host.addresses() == ["192.168.122.1/24", "169.254.1.1/16"]
        assert not set(host.addresses(family="-6")) & {f"{IPV6}/128", f"{LINK_LOCAL}/128"}


def test_removing_is_refused_while_it_serves(host):
    host.make_bridge()
    host.start()
    refused = host.ends("--remove-address")
    assert refused.returncode == 5
    assert "another md-server runs" in refused.stderr
    assert f"{METADATA}/32" in host.addresses()


def test_removing_where_there_is_no_bridge_is_harmless(host):
    removed = host.ends("--remove-address")
    assert (removed.returncode, removed.stdout) == (0, f"{METADATA} was not on virbr0\n")


def test_many_other_changes_cost_little(host):
    """A look at each change must not become a load."""
    host.make_bridge()
    process = host.start()
    script = "for i in $(seq 200); do ip addr add 10.9.0.$i/32 dev lo; done"
    began = cpu_seconds(process.pid)
    host.network.run("sh", "-c", script)
    host.wait_for_address()
    assert cpu_seconds(process.pid) - began < 2
    assert process.poll() is None


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_the_address_is_there_soon_after_the_bridge(host):
    host.start()
    host.make_bridge()
    began = time.monotonic()
    host.wait_for_address()
    assert time.monotonic() - began < 1


class TestIpv6:
    def test_a_guest_is_known_by_the_address_that_its_card_gives_itself_and_again_when_the_bridge_is_made_anew(
        self, host: Host
    ) -> None:
        process = host.start()
        own = link_local_address(MAC)
        for _ in range(2):
            host.make_bridge()
            host.wait_for_ipv6()
            host.plug_guest()
            for address in (f"{LINK_LOCAL}%eth0", IPV6):
                host.wait_for_answer((200, str(UUID(int=7)).encode()), address)
            assert f"{own}/64" in host.guest.run("ip", "-6", "-o", "addr", "show", "dev", "eth0").stdout
            host.network.run("ip", "link", "del", "tap0")
            host.network.run("ip", "link", "del", "virbr0")
        assert process.poll() is None
        assert "level=warning" not in host.log.read_text()

    def test_a_guest_is_known_by_its_assigned_address(self, host: Host) -> None:
        card = Address("default", "52:54:00:00:00:01", GUEST, more=(IpAddress("fd00:122::50", 64),))
        document = MetadataDocument(UUID(int=8), "vm", addresses=(card,))
        MetadataStore(host.folder / "state" / "metadata").write(document)
        host.make_bridge()
        host.network.run("ip", "addr", "add", "fd00:122::1/64", "dev", "virbr0")
        host.start()
        host.plug_guest()
        host.guest.run("ip", "addr", "add", "fd00:122::50/64", "dev", "eth0")
        host.wait_for_answer((200, str(UUID(int=8)).encode()), IPV6)

    def test_another_address_is_nobody(self, host: Host) -> None:
        host.make_bridge()
        host.start()
        host.plug_guest()
        host.guest.run("ip", "link", "set", "eth0", "address", "52:54:00:99:99:99")
        host.guest.run("sh", "-c", "ip link set eth0 down; ip link set eth0 up; ip -6 route add default dev eth0")
        for address in (f"{LINK_LOCAL}%eth0", IPV6):
            host.wait_for_answer((404, b"404 Not Found\n"), address)
        assert "from an address that no instance here has" in host.log.read_text()

    def test_the_same_link_local_address_on_another_link_reaches_nothing(self, host: Host) -> None:
        """On a link that is not the guests', anybody may have a guest's address."""
        host.make_bridge()
        host.make_bridge_of_others("virbr1")
        host.start()
        host.wait_for_ipv6()
        host.plug_guest("virbr1")
        host.network.run("ip", "addr", "add", f"{LINK_LOCAL}/128", "dev", "virbr1", "nodad")
        host.network.run("ip", "addr", "add", "fe80::1/64", "dev", "virbr1", "nodad")
        for address in (f"{LINK_LOCAL}%eth0", "fe80::1%eth0"):
            with pytest.raises(ConnectionRefusedError):
                host.guest.call(lambda address=address: ask(address))  # type: ignore[misc]

    def test_a_bridge_without_ipv6_is_served_by_ipv4_and_by_both_once_it_has_it(self, host: Host) -> None:
        host.without_ipv6()
        host.make_bridge()
        host.start()
        host.wait_for_address()
        wait_until(lambda: "the bridge has no IPv6" in host.log.read_text(), timeout_seconds=5, what="it is said")
        host.plug_guest()
        host.wait_for_answer((200, str(UUID(int=7)).encode()), METADATA)
        assert "level=warning" not in host.log.read_text()
        host.network.run("sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/virbr0/disable_ipv6")
        host.wait_for_ipv6()
        host.wait_for_answer((200, str(UUID(int=7)).encode()), f"{LINK_LOCAL}%eth0")

    def test_switched_off_it_touches_no_address_of_ipv6(self, host: Host) -> None:
        with (host.folder / "compute.yaml").open("a") as config:
            config.write("metadata: {ipv6: off}\n")
        host.make_bridge()
        host.start()
        host.wait_for_address()
        assert not set(host.addresses(family="-6")) & {f"{IPV6}/128", f"{LINK_LOCAL}/128"}

    def test_what_is_in_the_way_of_ipv6_is_told_and_ipv4_is_served(self, host: Host) -> None:
        host.make_bridge()
        host.network.run("ip", "addr", "add", f"{IPV6}/128", "dev", "lo")
        host.start()
        host.plug_guest()
        host.wait_for_answer((200, str(UUID(int=7)).encode()), METADATA)
        wait_until(lambda: f"{IPV6} is on interface lo already" in host.log.read_text(), timeout_seconds=5, what="a warning")
        host.network.run("ip", "addr", "del", f"{IPV6}/128", "dev", "lo")
        host.wait_for_answer((200, str(UUID(int=7)).encode()), IPV6)

    def test_both_families_are_served_by_one_thread_side_by_side(self, host: Host) -> None:
        host.make_bridge()
        host.start()
        host.plug_guest()
        host.wait_for_answer((200, str(UUID(int=7)).encode()), f"{LINK_LOCAL}%eth0")

        def ask_often() -> int:
            return sum(ask(address)[0] == 200 for _ in range(100) for address in (METADATA, IPV6, f"{LINK_LOCAL}%eth0"))

        assert host.guest.call(ask_often) == 300
