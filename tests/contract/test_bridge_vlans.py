"""VLANs of a bridge's ports in a kernel that has them, beside what iproute2 says of the same ports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.kernel_guest import run_in_kernel

pytestmark = pytest.mark.timeout(300)

SCRIPT = """\
import json, subprocess
from pathlib import Path
from common.errors import Permanent
from common.nics import Nic
from ecompute.bridge_vlans import vlans_of
from ecompute.bridges import HostBridges

def ip(*words):
    subprocess.run(["/bin/ip", *words], check=True)

def seen_by_iproute2():
    listed = json.loads(subprocess.run(["/bin/bridge", "-j", "vlan", "show"], check=True, capture_output=True).stdout)
    return {one["ifname"]: [[vlan["vlan"], sorted(vlan["flags"])] for vlan in one["vlans"]] for one in listed}

ip("link", "add", "br0", "type", "bridge")
for port in ("tap0", "tap1"):
    ip("link", "add", port, "type", "dummy")
    ip("link", "set", port, "master", "br0")
bridges, found = HostBridges(), {}
try:
    bridges.check(Nic("", bridge="br0", vlan=42))
except Permanent as error:
    found["refused"] = str(error)
Path("/sys/class/net/br0/bridge/vlan_filtering").write_text("1")
bridges.check(Nic("", bridge="br0", vlan=42))
found["before"] = vlans_of("tap0")
bridges.put_into_vlan("tap0", 42)
bridges.put_into_vlan("tap0", 42)
found["after"] = seen_by_iproute2()
bridges.put_into_vlan("tap0", 4094)
bridges.put_into_vlan("tap1", 1)
found["other"] = [vlans_of("tap0"), vlans_of("tap1")]
print(json.dumps(found))
"""


def test_a_port_is_in_its_vlan_and_in_no_other(tmp_path: Path) -> None:
    said = run_in_kernel(
        SCRIPT, tmp_path, modules=("llc", "stp", "bridge", "dummy"), programs=("ip", "bridge"), packages=("common", "ecompute")
    )
    found = json.loads(said.splitlines()[-1])
    mine = ["Egress Untagged", "PVID"]
    assert "vlan_filtering 1" in found["refused"]
    assert found["before"] == {"1": 6}
    assert found["after"] == {"br0": [[1, mine]], "tap0": [[42, mine]], "tap1": [[1, mine]]}, said
    assert found["other"] == [{"4094": 6}, {"1": 6}]
