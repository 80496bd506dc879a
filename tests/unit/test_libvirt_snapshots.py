"""What QEMU's answers about snapshots mean; that it takes them is seen in tests/system/test_snapshots.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import Conflict, HypervisorRejected
from ecompute import libvirt_snapshots

DISK = Path("/state/disk.qcow2")
NODES = {"return": [{"drv": "qcow2", "file": str(DISK), "node-name": "libvirt-1-format"}]}


def qemu_says(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    def answer(_handle: Any, command: str, _flags: int) -> str:
        is_look = json.loads(command)["execute"] == "query-named-block-nodes"
        return json.dumps(NODES if is_look else {"error": {"class": "GenericError", "desc": text}})

    monkeypatch.setattr(libvirt_snapshots.libvirt_qemu, "qemuMonitorCommand", answer)


def test_a_disk_that_is_being_copied_is_to_be_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    qemu_says(monkeypatch, "Need a root block node")
    for change in (libvirt_snapshots.take, libvirt_snapshots.drop):
        with pytest.raises(Conflict, match="is being copied, as for an image of it; try again"):
            change(None, DISK, "before+crash+1")


def test_what_else_qemu_refuses_is_its_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    qemu_says(monkeypatch, "Could not create\n snapshot")
    with pytest.raises(HypervisorRejected, match="QEMU says: Could not create snapshot"):
        libvirt_snapshots.take(None, DISK, "before+crash+1")
