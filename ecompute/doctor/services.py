"""etcd, Placement, the clock against both, and the names that have to be found."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from common import etcd_checkup, placement_checkup
from common.checkup import Check, Result, failure, ok, warning
from common.name_lookup import unresolved
from ecompute import identity
from ecompute.doctor.scene import Scene


def checks(scene: Scene) -> list[Check]:
    return [
        Check("etcd", lambda: etcd_checkup.look(scene.members, scene.config.etcd, lambda: scene.store, scene.keys)),
        Check("Placement", lambda: placement_checkup.look(scene.placement, scene.config.placement)),
        Check("clock", lambda: placement_checkup.look_at_clock(scene.members, scene.config.placement.url)),
        Check("names", lambda: _names(scene)),
    ]


def _names(scene: Scene) -> Iterator[Result]:
    own = identity.host_name()
    if (why := unresolved(own)) and own not in ("localhost", ""):
        # libvirtd looks it up whenever it is asked about the host, and hangs for as long as the resolver does.
        say = failure if "no answer" in why else warning
        yield say("names", f"this host's own name {own} is not found: {why}", f"add a line 127.0.1.1 {own} to /etc/hosts")
    else:
        yield ok("names", f"this host's own name {own} is found")
    urls = [*scene.config.etcd.endpoints, scene.config.placement.url]
    for host in dict.fromkeys(urlsplit(url).hostname or "" for url in urls):
        if why := unresolved(host):
            yield failure("names", f"{host} is not found: {why}", "correct compute.yaml, or add it to DNS or /etc/hosts")
