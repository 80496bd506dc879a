"""What cloud-init makes of a host's answers: runs one of its data sources and prints what that understood.

Runs by itself under Debian's Python with cloud-init's modules on its path, in the guest's network: knows nothing of ours. The
request is JSON on its standard input (``Asked`` in cloud_init.py), the answer JSON on its standard output. cloud-init's code
is used as it is, but for what cannot be real without a machine: its firmware's words, its kernel's command line, its block
devices (one file instead, taken apart by bsdtar, for not every kernel knows ISO 9660), and a lease taken only to reach the
metadata (the network is there already).
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from cloudinit import distros, dmi, helpers, util
from cloudinit.net import eni, network_state


def main() -> None:
    asked = json.load(sys.stdin)
    logging.basicConfig(filename=asked["log"], level=logging.DEBUG, format="%(name)s %(levelname)s %(message)s", force=True)
    module = importlib.import_module(f"cloudinit.sources.{asked['module']}")
    with contextlib.ExitStack() as stack:
        for patch in stand_ins(asked, module):
            stack.enter_context(patch)
        json.dump(understood(source(asked, module), Path(asked["directory"])), sys.stdout)


def stand_ins(asked: dict[str, Any], module: Any) -> list[Any]:
    leases = [name for name in ("EphemeralDHCPv4", "EphemeralIPNetwork") if hasattr(module, name)]
    return [
        mock.patch.object(dmi, "read_dmi_data", asked["firmware"].get),
        mock.patch.object(util, "get_cmdline", lambda: asked["command_line"]),
        mock.patch.object(util, "get_proc_env", lambda *_, **__: {}),
        mock.patch.object(util, "find_devs_with", lambda criteria=None, **_: drives(asked["drive"], criteria)),
        mock.patch.object(util, "mount_cb", mounted),
        *(mock.patch.object(module, name, lambda *_, **__: contextlib.nullcontext(mock.MagicMock())) for name in leases),
    ]


def drives(image: str | None, criteria: str | None) -> list[str]:
    """The drive, where blkid finds what is asked for ("LABEL=config-2") on it."""
    if image is None or criteria is None:
        return []
    found = subprocess.run(["blkid", "-p", "-o", "export", image], capture_output=True, text=True, check=True).stdout
    return [image] if criteria in found.splitlines() else []


def mounted(device: str, callback: Callable[..., Any], data: Any = None, mtype: Any = None, **_: Any) -> Any:
    """What *callback* makes of the folder with the content of *device*."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["bsdtar", "-x", "-f", device, "-C", folder], check=True)
        return callback(folder, data) if data is not None else callback(folder)


def source(asked: dict[str, Any], module: Any) -> Any:
    directory = Path(asked["directory"])
    paths = helpers.Paths({"cloud_dir": str(directory / "cloud"), "run_dir": str(directory / "run")})
    config = {"datasource_list": [asked["list_name"]], "datasource": {asked["list_name"]: asked["settings"]}}
    distribution = distros.fetch("debian")("debian", {}, paths)
    return getattr(module, asked["class_name"])(config, distribution, paths)


def understood(found: Any, directory: Path) -> dict[str, Any]:
    if not found.get_data():
        return {"is_found": False}
    hostname = found.get_hostname()
    network = found.network_config or None
    return {
        "is_found": True,
        "instance_id": found.get_instance_id(),
        "hostname": hostname if isinstance(hostname, str) else hostname[0],
        "keys": found.get_public_ssh_keys(),
        "user_data": encoded(found.get_userdata_raw()),
        "user_data_parts": parts(found.get_userdata()),
        "vendor_data": encoded(found.get_vendordata_raw()),
        "vendor_data_parts": parts(found.get_vendordata()),
        "availability_zone": found.availability_zone,
        "platform": found.platform_type,
        "subplatform": found.subplatform,
        "network": network,
        "interfaces": rendered(network, directory) if network else None,
        "is_still_valid": found.check_instance_id({}),
    }


def encoded(data: str | bytes | None) -> str | None:
    if data is None:
        return None
    return base64.b64encode(data if isinstance(data, bytes) else data.encode()).decode()


def parts(message: Any) -> list[str]:
    """The kinds of what cloud-init would follow."""
    if message is None:
        return []
    return [part.get_content_type() for part in message.walk() if not part.is_multipart()]


def rendered(network: dict[str, Any], directory: Path) -> str:
    """/etc/network/interfaces as cloud-init would write it on Debian."""
    state = network_state.parse_net_config_data(network)
    eni.Renderer({"eni_path": "interfaces", "eni_header": ""}).render_network_state(state, target=str(directory))
    return (directory / "interfaces").read_text()


if __name__ == "__main__":
    main()
