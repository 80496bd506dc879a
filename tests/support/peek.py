"""Looks into etcd or Placement from inside a test host: ``python -m tests.support.peek etcd ENDPOINT PREFIX`` prints
``{key: value}``, ``… placement URL PATH`` prints the answer. A command, because a test host has a network of its own.
"""

from __future__ import annotations

import json
import sys
import urllib.request


def _etcd(endpoint: str, prefix: str) -> dict[str, str]:
    from common.config import EtcdConfig  # here: gRPC is most of a start, and Placement is asked without it
    from common.etcd_store import EtcdStore

    store = EtcdStore(EtcdConfig(endpoints=(endpoint,)))
    try:
        return {item.key: item.value for item in store.list(prefix).items}
    finally:
        store.close()


def _placement(url: str, path: str) -> object:
    headers = {"X-Auth-Token": "admin", "OpenStack-API-Version": "placement 1.39"}
    with urllib.request.urlopen(urllib.request.Request(url + path, headers=headers), timeout=10) as answer:
        return json.load(answer)


if __name__ == "__main__":
    what, where, which = sys.argv[1:]
    print(json.dumps(_etcd(where, which) if what == "etcd" else _placement(where, which)))
