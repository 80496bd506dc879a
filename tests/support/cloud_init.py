"""Asks cloud-init itself, unpacked below .cache/cloud-init, what a guest would make of its metadata. Needs root.

It runs as a process of its own under Debian's Python, in the network of a guest, with mounts of its own, so that nothing of
it can touch this machine.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.processes import ROOT

UNPACKED = ROOT / ".cache" / "cloud-init"
READER = Path(__file__).with_name("cloud_init_reader.py")
PYTHON = "/usr/bin/python3"
# The reader looks for its cards in /sys, which shows those of the network in which it was mounted; and asks a name server
# whether names are answered that are none, for which it would wait long where there is no name server.
_ENTER = 'mount -t sysfs sysfs /sys && mount --bind /dev/null /etc/resolv.conf && exec "$@"'


@dataclass(frozen=True)
class Firmware:
    """What a guest's SMBIOS says."""

    product: str = "OpenStack Compute"
    serial: str = ""
    uuid: str = ""
    manufacturer: str = "etcd-compute"
    asset_tag: str = ""

    def words(self) -> dict[str, str]:
        """By the names that cloud-init has for them, which are dmidecode's."""
        return {
            "system-product-name": self.product, "system-serial-number": self.serial, "system-uuid": self.uuid,
            "system-manufacturer": self.manufacturer, "chassis-asset-tag": self.asset_tag,
        }  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """Which data source to run: a class of one of cloud-init's modules, and the name that it goes by in its configuration."""

    list_name: str
    class_name: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    firmware: Firmware = Firmware()
    command_line: str = "root=/dev/vda1 console=ttyS0"
    drive: Path | None = None


@dataclass(frozen=True)
class Understood:
    """What the data source made of it; nothing but ``is_found`` where it found none."""

    is_found: bool
    instance_id: str = ""
    hostname: str = ""
    keys: tuple[str, ...] = ()
    user_data: bytes | None = None
    user_data_parts: tuple[str, ...] = ()
    vendor_data: bytes | None = None
    vendor_data_parts: tuple[str, ...] = ()
    availability_zone: str | None = None
    platform: str = ""
    subplatform: str = ""
    network: dict[str, Any] | None = None
    interfaces: str | None = None  # /etc/network/interfaces, as cloud-init would write it
    is_still_valid: bool | None = None  # at the next boot, told without asking again


def understood(asked: Asked, folder: Path, *, network_of: int | None = None, timeout_seconds: float = 60) -> Understood:
    """What cloud-init understands of what it is *asked*, in the network of the process *network_of*.

    Raises:
        AssertionError: it failed altogether; its log is in the message.
    """
    assert UNPACKED.is_dir(), f"{UNPACKED} is missing; packaging/setup-host.sh --extra test run demo test makes it"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "cloud-init.log"
    request = {
        "module": f"DataSource{asked.list_name}",
        "class_name": asked.class_name or f"DataSource{asked.list_name}",
        "list_name": asked.list_name,
        "settings": asked.settings,
        "firmware": asked.firmware.words(),
        "command_line": asked.command_line,
        "drive": str(asked.drive) if asked.drive else None,
        "directory": str(folder),
        "log": str(log),
    }
    network = ["nsenter", "-t", str(network_of), "--net"] if network_of else ["unshare", "--net"]
    command = [*network, "unshare", "--mount", "sh", "-c", _ENTER, "sh", PYTHON, str(READER)]
    done = subprocess.run(
        command, input=json.dumps(request), capture_output=True, text=True, timeout=timeout_seconds, check=False,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(UNPACKED / "usr/lib/python3/dist-packages")},
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stderr}\n{log.read_text() if log.exists() else 'no log'}"
    return _read(json.loads(done.stdout))


def _read(answer: dict[str, Any]) -> Understood:
    for name in ("user_data", "vendor_data"):
        if answer.get(name) is not None:
            answer[name] = base64.b64decode(answer[name])
    names = {one.name for one in dataclasses.fields(Understood)}
    return Understood(**{k: tuple(v) if isinstance(v, list) else v for k, v in answer.items() if k in names})


def identified(firmware: Firmware, folder: Path, drive: Path | None = None) -> list[str]:
    """The data sources that cloud-init's ds-identify would have tried at the boot of a virtual machine, in that order."""
    root, programs = folder / "root", folder / "programs"
    dmi, etc = root / "sys/class/dmi/id", root / "etc/cloud"
    for made in (dmi, etc, root / "run", root / "proc/1", root / "var/lib/cloud", programs):
        made.mkdir(parents=True)
    files = {"product_name": firmware.product, "product_serial": firmware.serial, "product_uuid": firmware.uuid,
             "sys_vendor": firmware.manufacturer, "chassis_asset_tag": firmware.asset_tag}  # fmt: skip
    for name, content in files.items():
        (dmi / name).write_text(content + "\n")
    (root / "proc/cmdline").write_text("root=/dev/vda1 console=ttyS0\n")
    (root / "proc/uptime").write_text("1.00 1.00\n")
    shown = f"exec /usr/sbin/blkid -p -o export {drive}" if drive else "exit 2"  # as of a machine with this disk alone
    for name, text in {"systemd-detect-virt": "echo kvm", "blkid": shown}.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", str(UNPACKED / "usr/lib/cloud-init/ds-identify"), "--force"], capture_output=True, text=True, timeout=30,
        check=False, env={"PATH": f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin", "PATH_ROOT": str(root)},
    )  # fmt: skip
    written = root / "run/cloud-init/cloud.cfg"
    assert done.returncode in (0, 1), f"{done.stderr}\n{(root / 'run/cloud-init/ds-identify.log').read_text()}"
    return [] if not written.exists() else _sources(written.read_text())


def _sources(written: str) -> list[str]:
    """From "datasource_list: [ ConfigDrive, None ]"; the last is for when all others fail."""
    _, _, listed = written.partition("datasource_list:")
    return [name for name in listed.strip().strip("[]").replace(",", " ").split() if name != "None"]
