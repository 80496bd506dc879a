"""``demo.sh status``: which of the demo's processes run and answer, and its guests."""

from __future__ import annotations

import subprocess
import sys

from demo import guest, host, say, services
from demo.ports import listener_on
from demo.processes import Processes
from demo.settings import METADATA_ADDRESS, Settings


def status(settings: Settings) -> int:
    """Print it; 0 where the demo is up and serves, 1 where something is missing, 3 where nothing of it is there."""
    processes = Processes(settings)
    if not settings.state_dir.exists() and not processes.marked():
        print("the demo is not up; ./demo.sh starts it")
        return 3
    listed = services.services(settings)
    rows = [("PROCESS", "PID", "STATE", "WHERE")]
    where = {"etcd": settings.etcd_url, "placement": settings.placement_url, "ecompute": str(settings.compute_yaml)}
    is_well = True
    for name, service in listed.items():
        record = processes.running(name)
        state = "down" if not record else "serving" if service.answers() else "does not answer"
        is_well &= state == "serving"
        rows.append((name, str(record.pid) if record else "", state, where[name]))
    rows += _metadata_service()
    is_well &= rows[-1][2] == "serving"
    rows += [(name, str(record.pid), "runs", "") for name in host.DAEMONS if (record := processes.running(name))]
    if not host.libvirt_answers():
        rows.append(("libvirt", "", "does not answer", ""))
        is_well = False
    say.title("Processes")
    say.table(rows)
    say.line(f"logs: {settings.logs}")
    if services.etcd_answers(settings):
        say.title("Guests")
        sys.stdout.flush()
        subprocess.run([*guest.eschedule(settings), "list"], check=False)
    return 0 if is_well else 1


def _metadata_service() -> list[tuple[str, str, str, str]]:
    listener = listener_on(80, METADATA_ADDRESS)
    pid = str(listener.pid or "") if listener else ""
    return [("md_server", pid, "serving" if listener else "down", f"http://{METADATA_ADDRESS}")]
