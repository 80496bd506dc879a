"""A real guest that writes while a snapshot of its disk is taken, goes on, goes back, and becomes a new one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.deployment import Deployment
from tests.support.guests import Guest, make_key
from tests.support.hosts import NamespacedHost
from tests.support.processes import wait_until

pytestmark = pytest.mark.timeout(1200)  # it takes a minute and a half where the machine has nothing else to do, in three boots

REQUEST = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:128"
# Every file is on the disk before the number in it is counted as written; the counter grows for as long as it runs.
WRITER = """\
mkdir -p /root/loop; n=$(cat /root/loop/counted 2>/dev/null || echo 0)
while :; do
  n=$((n+1)); head -c 65536 /dev/urandom >/root/loop/data$((n%40)); echo $n >/root/loop/new; sync; mv /root/loop/new /root/loop/counted
done
"""
COUNT = "cat /root/loop/counted"


def root_file_system(host: NamespacedHost, disk: str, directory: Path) -> Path:
    """A copy of the first partition of *disk*, as the guest would find it."""
    host.run(["qemu-img", "convert", "-O", "raw", disk, directory / "disk.raw"], timeout_seconds=60)
    table = json.loads(host.run(["sfdisk", "--json", directory / "disk.raw"]).stdout)["partitiontable"]
    part = table["partitions"][0]
    target = directory / "root.ext4"
    with (directory / "disk.raw").open("rb") as source, target.open("wb") as output:
        source.seek(part["start"] * 512)
        output.write(source.read(part["size"] * 512))
    (directory / "disk.raw").unlink()
    return target


def check(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["e2fsck", *words], check=False, capture_output=True, text=True, timeout=60)


def test_a_snapshot_taken_while_the_guest_writes_is_what_it_was_then(
    deployment_host: NamespacedHost, host_deployment: Deployment, tiny_image: Path, tmp_path: Path
) -> None:
    eschedule, key = host_deployment.eschedule, make_key(tmp_path)
    eschedule(REQUEST, tiny_image, "--name", "web", "--key", f"{key}.pub")
    guest = Guest(deployment_host, host_deployment, "web", key, answers_within=300)
    host_key = guest.say("dropbearkey -y -f /etc/dropbear/host_key | grep ^ssh-")
    guest.say(
        f"echo before >/root/mark; sync; cat >/root/writer <<'X'\n{WRITER}X\nsh /root/writer >/dev/null 2>&1 </dev/null &"
    )
    wait_until(lambda: int(guest.say(f"{COUNT}; true") or 0) > 3, timeout_seconds=60, what="it writes", evidence=guest.evidence)

    # Live: the guest goes on, and it is told that it had no agent to hold it still.
    request = str(uuid4())
    for _ in range(2):
        taken = eschedule("snapshot", "create", "web", "before-upgrade", "--request-id", request, "--json")
        assert json.loads(taken.stdout)["consistency"] == "crash"
    again = eschedule("snapshot", "create", "web", "before-upgrade", check=False)
    assert (again.returncode, "there is a snapshot before-upgrade already" in again.stderr) == (5, True)
    counted = int(guest.say(COUNT))
    wait_until(lambda: int(guest.say(COUNT)) > counted + 3, timeout_seconds=60, what="it writes on", evidence=guest.evidence)
    guest.say("echo after >/root/mark; sync")

    # Unknown: refused before anything is stopped.
    unknown = eschedule("snapshot", "revert", "web", "other", check=False)
    assert unknown.returncode == 1
    assert "web has no snapshot other: there are before-upgrade; nothing was changed" in unknown.stderr
    counted = int(guest.say(COUNT))

    # Back, while it is off: what is on the disk is whole, once its journal is replayed.
    eschedule("stop", "web")
    eschedule("snapshot", "revert", "web", "before-upgrade")
    shown = host_deployment.show("web")
    assert (shown["phase"], shown["status"]["restored"]["problem"]) == ("Stopped", "")
    disk = f"{host_deployment.state_dir}/instances/{shown['uuid']}/disk.qcow2"
    assert deployment_host.run(["qemu-img", "check", "-q", disk]).returncode == 0
    root = root_file_system(deployment_host, disk, tmp_path)
    check("-p", "-E", "journal_only", root)
    clean = check("-fn", root)
    assert clean.returncode == 0, clean.stdout + clean.stderr

    eschedule("start", "web")
    assert guest.say("cat /root/mark") == "before"
    assert 3 <= int(guest.say(COUNT)) < counted, "what came later is gone"

    # Given up while it runs; to go back while it runs is in tests/faults/test_killed_after_every_step.py.
    listed = json.loads(eschedule("snapshot", "list", "web", "--json").stdout)
    assert [one["name"] for one in listed["snapshots"]] == ["before-upgrade"]
    eschedule("snapshot", "rm", "web", "before-upgrade")
    assert json.loads(eschedule("snapshot", "list", "web", "--json").stdout)["snapshots"] == []
    assert guest.say("cat /root/mark") == "before", "it runs on"

    # A wrong image costs nothing; the right one makes another guest of it, at the same address.
    wrong = eschedule("rebuild", "web", "--image", tiny_image, "--checksum", f"sha256:{'0' * 64}", check=False)
    assert wrong.returncode == 1
    assert "its disk was not rebuilt, and is as it was (ChecksumMismatch: " in wrong.stderr
    assert guest.say("cat /root/mark") == "before"
    eschedule("rebuild", "web", "--image", tiny_image)
    assert host_deployment.show("web")["status"]["addresses"][0]["address"] == guest.address
    assert guest.say("cat /root/mark 2>&1; true") == "cat: can't open '/root/mark': No such file or directory"
    assert guest.say("dropbearkey -y -f /etc/dropbear/host_key | grep ^ssh-") != host_key
    eschedule("destroy", "web")
    host_deployment.assert_nothing_is_left()
