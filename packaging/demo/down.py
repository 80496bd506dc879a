"""``demo.sh down``: take everything away that the demo made, whatever state it is in, and nothing else.

First the way an operator would: destroy the guests, let the host leave. What is left after that, because a service was dead,
is taken away directly: guests by libvirt, known by where their disks are, and DHCP entries by the form of their MAC addresses.
"""

from __future__ import annotations

import ipaddress
import shutil
from pathlib import Path
from xml.etree import ElementTree

from demo import guest, host, say, services
from demo.processes import Processes, end
from demo.programs import last_words, run, virsh
from demo.settings import BIN, MARK_FILE, NETWORK, DemoError, Settings

DESTROY_SECONDS = 60
FILTER = "etcd-compute"  # network.filter of compute.yaml
LOCK = Path("/run/etcd-compute-demo.lock")  # held by demo.sh until we end
QEMU_LOGS = Path("/var/log/libvirt/qemu")
# Processes with our mark that belong to libvirt, which has its own turn.
_LIBVIRTS = ("libvirtd", "virtlogd", "dnsmasq", "libvirt_leasesh")


def down(settings: Settings) -> None:
    """Leave nothing behind. Harmless where nothing is there."""
    processes = Processes(settings)
    if settings.state_dir.exists() and not settings.owns_state_dir:
        raise DemoError(f"{settings.state_dir} is no folder of the demo: is DEMO_STATE_DIR right?")
    places = (settings.state_dir, settings.run_dir, _leftovers(settings))
    if not any(place.exists() for place in places) and not processes.marked():
        print("nothing of the demo is here")
        LOCK.unlink(missing_ok=True)
        return
    say.title("Taking the demo away")
    _take_guests(settings, processes)
    with say.stage("services") as notes:
        notes.extend(_stop_services(settings, processes))
    with say.stage("libvirt") as notes:
        notes.extend(host.remove_metadata_address(settings))
        notes.extend(host.stop_network(settings))
        notes.extend(_remove_dhcp_hosts())
        notes.extend(_remove_filter())
        notes.extend(host.stop_libvirt(settings, processes))
        notes.extend([] if notes else ["as it was"])
    with say.stage("files"):
        for log in qemu_logs(settings):
            log.unlink(missing_ok=True)
        _remove_files(settings)
    say.line("The Debian packages, .venv and .cache stay: with them the next ./demo.sh takes seconds.")


# -- guests ----------------------------------------------------------------------------------------------------------------


def _take_guests(settings: Settings, processes: Processes) -> None:
    """Every guest, and the host from the cluster."""
    if not settings.state_dir.exists():
        return
    with say.stage("libvirt"):
        try:
            host.start_libvirt(settings, processes)  # guests live on without it, and only it can end them
        except DemoError as error:
            say.line(f"{error}; guests that still run cannot be found")
            return
    with say.stage("guests") as notes:
        notes.append(_destroy_guests(settings, processes))
    with say.stage("host") as notes:
        processes.stop("ecompute", grace_seconds=30)
        for record in processes.marked():  # one started by hand, which holds the host as well
            if record.name == "ecompute":
                end(record, grace_seconds=30)
        notes.append(_leave(settings))
    for domain in own_domains(settings):
        virsh("destroy", domain)
        answer = virsh("undefine", domain, "--managed-save", "--snapshots-metadata")
        say.line(f"guest {domain} taken away by libvirt" + (f": {last_words(answer)}" if answer.returncode else ""))


def _destroy_guests(settings: Settings, processes: Processes) -> str:
    listed = services.services(settings)
    if not services.etcd_answers(settings) or not services.placement_answers(settings):
        return "etcd or Placement is down; taken away without them"
    names = services.instance_names(settings)
    if not names:
        return "there are none"
    if not processes.running("ecompute"):
        services.start(listed["ecompute"], processes)  # only the host can destroy its guests
    command = [*guest.eschedule(settings), "destroy", *names, "--wait-seconds", str(DESTROY_SECONDS)]
    answer = run(command, timeout_seconds=DESTROY_SECONDS + 30)
    return f"eschedule destroy: {last_words(answer)}" if answer.returncode else f"{len(names)} destroyed"


def _leave(settings: Settings) -> str:
    if not settings.compute_yaml.exists():
        return "was not set up"
    if not services.etcd_answers(settings) or not services.placement_answers(settings):
        return "not told: etcd or Placement is down"
    answer = run([BIN / "ecompute", "--config", settings.compute_yaml, "--leave"], timeout_seconds=60)
    return f"ecompute --leave: {last_words(answer)}" if answer.returncode else "left"


def own_domains(settings: Settings) -> list[str]:
    """The names of the guests whose disk is in our state directory, running or not."""
    names = [name.strip() for name in virsh("list", "--all", "--name").stdout.splitlines() if name.strip()]
    return [name for name in names if f" {settings.state_dir}/instances/" in virsh("domblklist", name).stdout]


def qemu_logs(settings: Settings) -> list[Path]:
    """libvirt's logs of our guests, also of those destroyed long ago: each begins with a command line that names the disk."""
    disks = f"{settings.state_dir}/instances/".encode()
    return [log for log in sorted(QEMU_LOGS.glob("*.log")) if disks in log.read_bytes()]


# -- what is beside the guests ------------------------------------------------------------------------------------------------


def _stop_services(settings: Settings, processes: Processes) -> list[str]:
    ended = [name for name in reversed(services.services(settings)) if processes.stop(name)]
    for record in processes.marked():  # children, and whatever was not written down
        if record.name not in _LIBVIRTS:
            end(record)
            ended.append(record.name)
    return [", ".join(ended)] if ended else ["none were running"]


def _remove_dhcp_hosts() -> list[str]:
    """DHCP entries that a dead ecompute left: those whose MAC is made of their address, and that no guest has."""
    description = virsh("net-dumpxml", NETWORK, "--inactive").stdout
    if not description.strip():
        return []
    entries = ElementTree.fromstring(description).findall("./ip/dhcp/host")  # noqa: S314 - libvirt's own
    ours = [(entry.get("mac", ""), entry.get("ip", "")) for entry in entries]
    ours = [(mac, address) for mac, address in ours if mac.lower() == mac_of(address)]
    if not ours:
        return []
    in_use = _macs_in_use()
    scope = ["--live", "--config"] if NETWORK in virsh("net-list", "--name").stdout.split() else ["--config"]
    gone = [
        address for mac, address in ours
        if mac.lower() not in in_use
        and not virsh("net-update", NETWORK, "delete", "ip-dhcp-host", f"<host mac='{mac}' ip='{address}'/>", *scope).returncode
    ]  # fmt: skip
    return [f"{len(gone)} DHCP entries"] if gone else []


def _remove_filter() -> list[str]:
    """The network filter of our guests, where ecompute could not leave; libvirt refuses while a guest uses it."""
    answer = virsh("nwfilter-undefine", FILTER)
    return [f"network filter {FILTER}"] if answer.returncode == 0 else []


def mac_of(address: str) -> str:
    """The MAC that ecompute gives to a guest with *address*."""
    try:
        return "52:54:" + ":".join(f"{byte:02x}" for byte in ipaddress.IPv4Address(address).packed)
    except ValueError:
        return ""


def _macs_in_use() -> str:
    names = [name.strip() for name in virsh("list", "--all", "--name").stdout.splitlines() if name.strip()]
    return "".join(virsh("domiflist", name).stdout for name in names).lower()


def _leftovers(settings: Settings) -> Path:
    return settings.state_dir.with_name(settings.state_dir.name + ".removing")


def remove_leftovers(settings: Settings) -> None:
    """What a removal that was cut off had renamed already; only the demo gives folders this name."""
    leftovers = _leftovers(settings)
    if (leftovers / MARK_FILE).exists() or (leftovers.exists() and not any(leftovers.iterdir())):
        mark = leftovers / MARK_FILE
        for entry in leftovers.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry != mark:
                entry.unlink(missing_ok=True)
        mark.unlink(missing_ok=True)  # last: a removal that is cut off is gone on with
        leftovers.rmdir()


def _remove_files(settings: Settings) -> None:
    """First renamed, so that a removal that is cut off leaves nothing that looks like a demo."""
    remove_leftovers(settings)
    if settings.state_dir.exists():
        settings.state_dir.rename(_leftovers(settings))
        remove_leftovers(settings)
    shutil.rmtree(settings.run_dir, ignore_errors=True)
    LOCK.unlink(missing_ok=True)
