"""A process that makes many instances at one moment through eschedule's library, for tests of what they share.

    python -m tests.support.pool_clients '{"etcd": …, "placement": …, "prefix": …, "network": …, "names": […]}'

One thread for each name; all of them begin when a line comes in on standard input. Prints what came of each, as JSON: its uuid, or
why there is none.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from common.config import EtcdConfig, PlacementConfig
from common.errors import EcomputeError
from common.etcd_store import EtcdStore
from common.keys import Keys
from common.model import ImageRef
from common.nics import Nic
from common.placement import Placement
from eschedule.request import Request
from eschedule.scheduler import Scheduler
from tests.support.eschedule import IMAGE, QUERY, Site

RESOURCES = {"VCPU": 1, "MEMORY_MB": 256, "DISK_GB": 1}
DEADLINE_SECONDS = 60.0  # of a machine that is busy with all of them


def start(site: Site, network: str, names: Sequence[str]) -> subprocess.Popen[str]:
    """A process that waits for the line by which it begins."""
    wanted = {
        "etcd": site.etcd.endpoint, "placement": site.placement_server.url, "prefix": site.prefix, "network": network,
        "names": list(names),
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.pool_clients", json.dumps(wanted)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def main(wanted: dict[str, Any]) -> None:
    keys = Keys(wanted["prefix"])
    store = EtcdStore(EtcdConfig(endpoints=(wanted["etcd"],), prefix=keys.prefix, deadline_seconds=DEADLINE_SECONDS))
    config = PlacementConfig(wanted["placement"], timeout_seconds=30, deadline_seconds=DEADLINE_SECONDS)
    placement = Placement(config, etcd_prefix=keys.prefix)
    came: dict[str, dict[str, str]] = {}

    def create(name: str) -> None:
        request = Request(QUERY, RESOURCES, ImageRef(IMAGE), name=name, nics=(Nic(wanted["network"]),))
        try:
            came[name] = {"uuid": str(Scheduler(store, placement, keys).create(request).uuid)}
        except EcomputeError as error:
            came[name] = {"error": f"{type(error).__name__}: {error}"}

    threads = [threading.Thread(target=create, args=(name,)) for name in wanted["names"]]
    store.get(keys.network(wanted["network"]))  # connected before the race
    print("ready", flush=True)
    sys.stdin.readline()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(came), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
