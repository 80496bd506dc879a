"""Whole libvirt hosts for tests, several on one machine: each in its own net, mount, UTS, PID and IPC namespaces.

A host has its own ``/run``, libvirt folders, machine id, boot id, ``/var/lib/etcd-compute`` and ``virbr0``; its libvirtd runs
real QEMU. The hosts of one ``HostNetwork`` reach each other and this machine over a bridge. Needs root and the packages of
libvirt and QEMU. Everything is gone when the test process ends, however it ends: the kernel kills the first process of a host
with its test, and a bridge that a killed run left behind goes at the next run's start. What stays are empty folders on the
machine that a host's own ones are mounted over (``MOUNTED_FOLDERS``).
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.support.processes import spawn, stop, wait_until

# Folders of a host that are its own; the machine's are as they were.
MOUNTED_FOLDERS = {
    "/run": "run",
    "/etc/libvirt": "etc-libvirt",
    "/etc/etcd-compute": "etc-etcd-compute",
    "/var/lib/libvirt": "lib-libvirt",
    "/var/log/libvirt": "log-libvirt",
    "/var/cache/libvirt": "cache-libvirt",
    "/var/lib/etcd-compute": "lib-etcd-compute",
    "/var/log/etcd-compute": "log-etcd-compute",
}

LIBVIRTD_CONF = """\
auth_unix_rw = "none"
unix_sock_rw_perms = "0770"
host_uuid = "{host_uuid}"
log_outputs = "3:stderr"
"""

# QEMU's own cgroups and namespaces need more rights than a container has; a serial log goes to its file without virtlogd.
QEMU_CONF = """\
security_driver = "none"
cgroup_controllers = []
namespaces = []
remember_owner = 0
stdio_handler = "file"
"""

DEFAULT_NETWORK = """\
<network>
  <name>default</name>
  <uuid>{uuid}</uuid>
  <forward mode='nat'/>
  <bridge name='virbr0' stp='on' delay='0'/>
  <ip address='192.168.122.1' netmask='255.255.255.0'>
    <dhcp><range start='192.168.122.2' end='192.168.122.254'/></dhcp>
  </ip>
</network>
"""

# The host's process 1; bash also reaps what daemons leave behind, so that a QEMU that was told to end is seen to be gone.
# The network card comes from outside, when the namespace is there.
INIT = """\
#!/bin/bash
set -eu
{mounts}
mount -t sysfs sysfs /sys
mkdir -p /run/lock /run/libvirt /run/etcd-compute /var/lib/libvirt/{{images,dnsmasq,qemu}}
hostname {name}
ip link set lo up
n=0; until ip link show eth0 >/dev/null 2>&1; do n=$((n+1)); [ $n -lt 200 ]; sleep 0.05; done
ip addr add {address}/24 dev eth0
ip link set eth0 up
ip route add default via {gateway}
touch /run/host-is-up
while :; do sleep infinity & wait; done
"""


def _ip(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], check=check, capture_output=True, text=True, timeout=20)


def children_of(parent: int) -> list[int]:
    """The processes whose parent is *parent*, as this machine counts them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == parent:
            found.append(int(folder.name))
    return found


def _groups() -> str:
    """``/etc/group``, with libvirt's QEMU user in the group of ``/dev/kvm``.

    In a container the device may have a group number of the machine around it. libvirt then finds that QEMU can use KVM and its
    user cannot, and probes QEMU anew at every call: 0.6 s each.
    """
    text = Path("/etc/group").read_text()
    try:
        user, device = pwd.getpwnam("libvirt-qemu"), Path("/dev/kvm").stat()
    except (KeyError, FileNotFoundError):
        return text
    if device.st_gid in os.getgrouplist(user.pw_name, user.pw_gid):
        return text
    return f"{text.rstrip()}\nkvm-device:x:{device.st_gid}:{user.pw_name}\n"


def _users() -> str:
    """``/etc/passwd``, with the user that sshd drops to, which its package would have made."""
    text = Path("/etc/passwd").read_text()
    return text if "\nsshd:" in text else f"{text.rstrip()}\nsshd:x:64999:65534::/run/sshd:/usr/sbin/nologin\n"


class HostNetwork:
    """A bridge with a subnet 10.98.N.0/24, of which this machine is .1.

    N is claimed by an abstract socket, which lives in the network namespace as the bridge does and goes with the process
    that holds it. So two runs at once never share one, and a bridge whose socket is free was left by a run that was killed.
    """

    def __init__(self) -> None:
        self._remove_leftovers()
        self.number, self._claim = next(claimed for number in range(1, 255) if (claimed := self._claimed(number)))
        self.bridge = f"ectest{self.number}"
        self.gateway = f"10.98.{self.number}.1"
        self._hosts = 0
        # Without an address of its own a bridge has that of one of its ports: when that host goes, the others talk to nobody for
        # as long as they remember it, half a minute.
        _ip("link", "add", self.bridge, "address", f"02:ec:00:00:00:{self.number:02x}", "type", "bridge")
        _ip("addr", "add", f"{self.gateway}/24", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")

    @staticmethod
    def _claimed(number: int) -> tuple[int, socket.socket] | None:
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0etcd-compute-test-network-{number}")
        except OSError:
            claim.close()
            return None
        return number, claim

    @classmethod
    def _remove_leftovers(cls) -> None:
        for _, interface in socket.if_nameindex():
            bridge = re.fullmatch(r"ectest(\d+)", interface)
            if bridge and (claimed := cls._claimed(int(bridge[1]))):
                _ip("link", "del", interface, check=False)
                claimed[1].close()

    def next_host(self) -> int:
        self._hosts += 1
        return self._hosts

    def close(self) -> None:
        _ip("link", "del", self.bridge, check=False)
        self._claim.close()


class HostProcess:
    """A process inside a host. It ends with the host, or by ``send_signal``."""

    def __init__(self, entry: subprocess.Popen[bytes]) -> None:
        self._entry = entry  # nsenter, which waits for its child and ends as that did
        self.pid = wait_until(lambda: children_of(entry.pid), timeout_seconds=10, what="nsenter started its command")[0]

    def poll(self) -> int | None:
        return self._entry.poll()

    def wait(self, timeout_seconds: float = 10) -> int:
        return self._entry.wait(timeout_seconds)

    def send_signal(self, number: int) -> None:
        if self.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):  # it has ended, and nsenter has not noticed
            os.kill(self.pid, number)
        if number != signal.SIGSTOP:
            self._entry.send_signal(signal.SIGCONT)  # nsenter stops itself with its child, and goes on with nobody

    def stop(self, *, timeout_seconds: float = 10, with_signal: int = signal.SIGTERM) -> int:
        """End it and wait; SIGKILL after *timeout_seconds*. Its exit code."""
        self.send_signal(with_signal)
        try:
            return self.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self.send_signal(signal.SIGKILL)
            return self.wait()


class NamespacedHost:
    """One host. ``start`` after ``kill`` is a reboot: another boot id, an empty ``/run``, the disks as they were.

    Args:
        directory: holds the host's own folders, its logs and libvirt's socket; removed by nobody but its owner.
    """

    def __init__(self, network: HostNetwork, directory: Path) -> None:
        index = network.next_host()
        self.network = network
        self.name = f"host{index}"
        self.address = f"10.98.{network.number}.{10 + index}"
        self.directory = directory
        self.boot_id = ""
        self.libvirt_uuid = str(uuid.uuid4())
        self._interface = f"ectest{network.number}-{index}"
        self._first: subprocess.Popen[bytes] | None = None  # unshare, whose child is process 1
        self._pid = 0
        self._libvirtd: HostProcess | None = None
        self._make_folders()

    # --- Where things are, seen from this machine -------------------------------------------------------------------------

    def path(self, inside: str) -> Path:
        """Where this machine sees the path *inside* of the host."""
        for mounted, own in MOUNTED_FOLDERS.items():
            if inside == mounted or inside.startswith(mounted + "/"):
                return self.directory / own / inside[len(mounted) + 1 :]
        return Path(inside)

    @property
    def process_one(self) -> int:
        """The host's first process as this machine counts it; ``/proc/<it>/root`` shows the host's files with all its mounts."""
        return self._pid

    @property
    def uri(self) -> str:
        """A libvirt URI by which this machine, and the host itself, reaches the host's libvirtd."""
        return f"qemu+unix:///system?socket={self.path('/run/libvirt/libvirt-sock')}"

    # --- Life -------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Boot, and return when libvirtd answers and its default network is up."""
        assert self._first is None, f"{self.name} is up already"
        self._clear_run()
        self.boot_id = str(uuid.uuid4())
        (self.directory / "boot-id").write_text(self.boot_id + "\n")
        self._first = spawn(
            ["unshare", "--net", "--mount", "--uts", "--pid", "--ipc", "--fork", "--mount-proc", "--kill-child",
             self.directory / "init"],
            log=self.directory / "init.log",
        )  # fmt: skip
        self._pid = wait_until(
            self._process_one, timeout_seconds=10, what=f"{self.name} has its namespaces", evidence=self.logs
        )
        _ip("link", "add", self._interface, "type", "veth", "peer", "name", "eth0", "netns", str(self._pid))
        _ip("link", "set", self._interface, "master", self.network.bridge, "up")
        up = self.path("/run/host-is-up")
        wait_until(up.exists, timeout_seconds=15, what=f"{self.name} is up", evidence=self.logs)
        self.start_libvirtd()

    def add_bridge(self, name: str, address: str = "") -> None:
        """A plain bridge with a card on the wire that the hosts of the network share; it goes when the host does.

        Args:
            address: of the host itself there, with its prefix length.
        """
        card, port = f"{self._interface}-{name}"[-15:], f"{name}-wire"
        _ip("link", "add", card, "type", "veth", "peer", "name", port, "netns", str(self._pid))
        _ip("link", "set", card, "master", self.network.bridge, "up")
        commands = [f"ip link add {name} type bridge", f"ip link set {port} master {name} up", f"ip link set {name} up"]
        commands += [f"ip addr add {address} dev {name}"] if address else []
        self.run(["bash", "-c", " && ".join(commands)])

    def kill(self) -> None:
        """Crash: every process of the host is gone at once, its guests too."""
        if self._first is None:
            return
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
        stop(self._first, with_signal=signal.SIGKILL)
        # Also ends the network namespace, where a process of this machine holds it open.
        _ip("link", "del", self._interface, check=False)
        self._first, self._pid, self._libvirtd = None, 0, None

    stop = kill  # there is nothing that a test host would lose

    def start_libvirtd(self) -> None:
        self._libvirtd = self.spawn(["libvirtd"], log=self.directory / "libvirtd.log")
        command = ["virsh", "-q", "-c", self.uri, "net-list", "--name"]

        def answers() -> bool:
            listed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
            return "default" in listed.stdout.split()

        wait_until(answers, timeout_seconds=30, what=f"libvirtd of {self.name} answers", evidence=self.logs)

    def stop_libvirtd(self, with_signal: int = signal.SIGTERM) -> None:
        assert self._libvirtd is not None, f"{self.name} has no libvirtd"
        self._libvirtd.stop(with_signal=with_signal)

    @property
    def libvirtd(self) -> HostProcess:
        assert self._libvirtd is not None, f"{self.name} has no libvirtd"
        return self._libvirtd

    # --- Commands ---------------------------------------------------------------------------------------------------------

    def run(
        self, command: Sequence[str | Path], *, timeout_seconds: float = 60, check: bool = True, text_input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run *command* inside to its end."""
        return subprocess.run(
            self._inside(command), check=check, capture_output=True, text=True, timeout=timeout_seconds, input=text_input
        )

    def spawn(
        self, command: Sequence[str | Path], *, log: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> HostProcess:
        """Start *command* inside, its output appended to *log*; it ends with the host."""
        return HostProcess(spawn(self._inside(command, cwd), log=log, env=env))

    def logs(self) -> str:
        """What the host's own processes said last."""
        logs = [log for log in (self.directory / "init.log", self.directory / "libvirtd.log") if log.exists()]
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}" for log in logs)

    # --- Inside -----------------------------------------------------------------------------------------------------------

    def _inside(self, command: Sequence[str | Path], cwd: Path | None = None) -> list[str]:
        assert self._pid, f"{self.name} is not up"
        # Entering a mount namespace changes the working folder to its root, so it is named.
        namespaces = ["--mount", "--net", "--uts", "--ipc", "--pid"]
        enter = ["nsenter", "--target", str(self._pid), *namespaces, f"--wdns={cwd or Path.cwd()}"]
        return [*enter, *(str(part) for part in command)]

    def _process_one(self) -> int:
        """The host's process 1 as this machine counts it, once it has its own network; else 0."""
        assert self._first is not None
        if self._first.poll() is not None:
            raise AssertionError(f"{self.name} did not start\n{self.logs()}")
        for pid in children_of(self._first.pid):
            if (Path(f"/proc/{pid}/ns/net")).readlink() != Path("/proc/self/ns/net").readlink():
                return pid
        return 0

    def _clear_run(self) -> None:
        run = self.directory / MOUNTED_FOLDERS["/run"]
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir(mode=0o755)

    def _make_folders(self) -> None:
        for mounted, own in MOUNTED_FOLDERS.items():
            Path(mounted).mkdir(parents=True, exist_ok=True)
            (self.directory / own).mkdir(parents=True, exist_ok=True)
        Path("/etc/machine-id").touch()
        (self.directory / "machine-id").write_text(uuid.uuid4().hex + "\n")
        (self.directory / "group").write_text(_groups())
        (self.directory / "passwd").write_text(_users())
        (self.directory / "hosts").write_text(f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        self._configure_libvirt(self.directory / MOUNTED_FOLDERS["/etc/libvirt"])
        binds = [(self.directory / own, mounted) for mounted, own in MOUNTED_FOLDERS.items()]
        binds += [(self.directory / name, f"/etc/{name}") for name in ("machine-id", "hosts", "group", "passwd")]
        binds += [(self.directory / "boot-id", "/proc/sys/kernel/random/boot_id")]
        mounts = "\n".join(f"mount --bind {shlex.quote(str(source))} {target}" for source, target in binds)
        init = self.directory / "init"
        init.write_text(INIT.format(mounts=mounts, name=self.name, address=self.address, gateway=self.network.gateway))
        init.chmod(0o755)

    def _configure_libvirt(self, own: Path) -> None:
        shutil.copytree("/etc/libvirt/nwfilter", own / "nwfilter", dirs_exist_ok=True)
        (own / "libvirtd.conf").write_text(LIBVIRTD_CONF.format(host_uuid=self.libvirt_uuid))
        (own / "qemu.conf").write_text(QEMU_CONF)
        networks = own / "qemu" / "networks"
        (networks / "autostart").mkdir(parents=True, exist_ok=True)
        (networks / "default.xml").write_text(DEFAULT_NETWORK.format(uuid=uuid.uuid4()))
        (networks / "autostart" / "default.xml").symlink_to("/etc/libvirt/qemu/networks/default.xml")


@pytest.fixture(scope="session")
def host_network() -> Iterator[HostNetwork]:
    network = HostNetwork()
    yield network
    network.close()


@pytest.fixture(scope="session")
def libvirt_host(host_network: HostNetwork, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NamespacedHost]:
    """A running host with QEMU, shared by the whole session: leave no domain behind in it."""
    host = NamespacedHost(host_network, tmp_path_factory.mktemp("libvirt-host"))
    host.start()
    yield host
    host.stop()
