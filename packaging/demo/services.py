"""etcd, Placement and ecompute of the demo: their configuration, starting them, knowing that they serve."""

from __future__ import annotations

import base64
import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import host
from demo.ports import listener_on
from demo.processes import Processes
from demo.programs import tail, wait_for
from demo.settings import BIN, METADATA_ADDRESS, NETWORK, PORTS, ROOT, DemoError, Settings, write_file

PREFIX = "/etcd-compute/v1/"
# The KVM probe of ecompute's first start may take its whole deadline.
ECOMPUTE_SECONDS = 90

COMPUTE_YAML = """\
# Written by demo.sh; compute.yaml in the checkout explains every key.
etcd:
  endpoints: [{etcd}]
placement:
  url: {placement}
paths:
  state_dir: {state}
  run_dir: {run}
network:
  name: {network}
metadata:
  mode: managed
  bridge: {bridge}
log:
  format: text
"""
SCHEDULE_YAML = """\
# Written by demo.sh; schedule.yaml in the checkout explains every key.
etcd:
  endpoints: [{etcd}]
placement:
  url: {placement}
defaults:
  image: {image}
  key_files: [{key}.pub]
  network: {network}
"""


def write_configuration(settings: Settings) -> None:
    values = {
        "etcd": settings.etcd_url, "placement": settings.placement_url, "state": settings.state_dir, "run": settings.run_dir,
        "network": NETWORK, "bridge": host.bridge() or "virbr0", "image": settings.image, "key": settings.ssh_key,
    }  # fmt: skip
    write_file(settings.compute_yaml, COMPUTE_YAML.format(**values))
    write_file(settings.schedule_yaml, SCHEDULE_YAML.format(**values))


@dataclass(frozen=True)
class Service:
    """A program of the demo.

    Args:
        fingerprint: of what it is started from; where it differs from the running one's, the service is started anew.
        answers: whether it serves.
        ports: the settings' fields of the ports that it listens on.
    """

    name: str
    command: Sequence[str | Path]
    fingerprint: str
    answers: Callable[[], bool]
    ports: tuple[str, ...] = ()
    start_seconds: float = 30


def services(settings: Settings) -> dict[str, Service]:
    """The demo's own by name, in the order in which they are started."""
    packaging = ROOT / "packaging"
    etcd = (packaging / "run-etcd", settings.state_dir / "etcd", str(settings.etcd_port), str(settings.etcd_peer_port))
    placement = (packaging / "run-placement", settings.state_dir / "placement", str(settings.placement_port))
    ecompute = (BIN / "ecompute", "--config", settings.compute_yaml)
    configuration = settings.compute_yaml.read_text() if settings.compute_yaml.exists() else ""
    listed = (
        Service("etcd", etcd, _fingerprint(etcd), lambda: etcd_answers(settings), ("etcd_port", "etcd_peer_port")),
        Service("placement", placement, _fingerprint(placement), lambda: placement_answers(settings), ("placement_port",)),
        Service("ecompute", ecompute, _fingerprint((*ecompute, configuration, sources())), lambda: host_is_ready(settings),
                start_seconds=ECOMPUTE_SECONDS),
    )  # fmt: skip
    return {service.name: service for service in listed if not settings.services_urls or service.name == "ecompute"}


def refuse_silent_services(settings: Settings) -> None:
    """
    Raises:
        DemoError: an etcd or a Placement that the demo is to use does not answer.
    """
    for name, url, answers in (
        ("etcd", settings.etcd_url, etcd_answers), ("Placement", settings.placement_url, placement_answers),
    ):  # fmt: skip
        if not answers(settings):
            raise DemoError(f"{name} does not answer at {url}: start it (./docker.sh), or let the demo start its own")


def _fingerprint(parts: Sequence[object]) -> str:
    return hashlib.sha256("\0".join(str(part) for part in parts).encode()).hexdigest()[:16]


def sources() -> str:
    """Changes whenever a program's source does: a demo started again then runs the new one."""
    files = (file for folder in ("common", "ecompute", "md_server") for file in (ROOT / folder).glob("*.py"))
    return str(sorted((file.name, file.stat().st_mtime_ns) for file in files))


def refuse_taken_ports(settings: Settings, processes: Processes) -> None:
    """
    Raises:
        DemoError: a port that is needed is held by a process that is not the demo's.
    """
    ours = {record.pid for record in processes.marked()}
    for field, variable in () if settings.services_urls else PORTS.items():
        port = getattr(settings, field)
        listener = listener_on(port)
        if listener and listener.pid not in ours:
            raise DemoError(
                f"port {port} on 127.0.0.1 is taken by {listener}: end that, or choose another port: "
                f"{variable}={port + 10000 if port < 50000 else port - 10000} ./demo.sh"
            )
    listener = listener_on(80, METADATA_ADDRESS)
    if listener and listener.pid not in ours:
        raise DemoError(
            f"port 80 of {METADATA_ADDRESS}, where guests look for their metadata, is taken by {listener}: "
            "end that, or have it listen on the host's own address only"
        )


def start(service: Service, processes: Processes) -> str:
    """Start *service* unless it runs as it should; says what was done. ``await_answer`` waits for it.

    A service that runs from other settings or sources, or that does not answer, is started anew.
    """
    running = processes.running(service.name)
    if running and running.fingerprint == service.fingerprint and service.answers():
        return "was running"
    if running:
        processes.stop(service.name)
    processes.start(service.name, service.command, fingerprint=service.fingerprint)
    return "started"


def await_answer(service: Service, processes: Processes) -> None:
    """
    Raises:
        DemoError: it does not serve in time, or ended; with the last line of its log.
    """

    def answers_or_ended() -> bool:
        return service.answers() or not processes.running(service.name)

    wait_for(
        answers_or_ended, timeout_seconds=service.start_seconds, what=f"{service.name} did not answer",
        evidence=lambda: tail(processes.log(service.name)),
    )  # fmt: skip
    if not processes.running(service.name):
        raise DemoError(f"{service.name} ended at once: {tail(processes.log(service.name))}")


# -- asking them; plain HTTP, as they are on loopback ----------------------------------------------------------------------


def _ask(url: str, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None) -> Any:
    """The JSON answer; None where there is none within 5 s."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through the host's proxy
    data = json.dumps(body).encode() if body is not None else None
    try:
        with opener.open(urllib.request.Request(url, data, headers or {}), timeout=5) as answer:  # noqa: S310 - http only
            return json.load(answer)
    except (OSError, ValueError):
        return None


def etcd_answers(settings: Settings) -> bool:
    health = _ask(f"{settings.etcd_url}/health")
    return isinstance(health, dict) and health.get("health") == "true"


def etcd_keys(settings: Settings, prefix: str) -> list[str]:
    """Keys under *prefix*; empty where etcd does not answer."""
    body = {"key": _base64(prefix), "range_end": _base64(prefix[:-1] + chr(ord(prefix[-1]) + 1)), "keys_only": True}
    answer = _ask(f"{settings.etcd_url}/v3/kv/range", body) or {}
    return [base64.b64decode(item["key"]).decode() for item in answer.get("kvs", [])]


def etcd_values(settings: Settings, prefix: str) -> dict[str, dict[str, Any]]:
    """The records under *prefix* by their keys; empty where etcd does not answer."""
    body = {"key": _base64(prefix), "range_end": _base64(prefix[:-1] + chr(ord(prefix[-1]) + 1))}
    answer = _ask(f"{settings.etcd_url}/v3/kv/range", body) or {}
    pairs = ((base64.b64decode(item["key"]).decode(), base64.b64decode(item["value"])) for item in answer.get("kvs", []))
    found = {key: json.loads(value) for key, value in pairs}
    return {key: record for key, record in found.items() if isinstance(record, dict)}


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def placement_answers(settings: Settings) -> bool:
    return _ask(settings.placement_url) is not None


def _placement(settings: Settings, path: str) -> Any:
    headers = {"X-Auth-Token": "admin", "OpenStack-API-Version": "placement 1.39"}
    return _ask(f"{settings.placement_url}{path}", headers=headers)


def host_is_ready(settings: Settings) -> bool:
    """Whether this host is alive and has told Placement what it has; of other hosts the demo knows nothing."""
    this = host.libvirt_host_uuid()
    hosts = etcd_values(settings, f"{PREFIX}hosts/")
    providers = [key.rpartition("/")[2] for key, record in hosts.items() if record.get("libvirt_host_uuid") == this]
    answers = (_placement(settings, f"/resource_providers/{provider}/inventories") for provider in providers)
    return any(isinstance(answer, dict) and "VCPU" in answer.get("inventories", {}) for answer in answers)


def instance_names(settings: Settings) -> list[str]:
    """The names of the demo's instances; empty where etcd does not answer."""
    if not settings.services_urls:
        return [key.rpartition("/")[2] for key in etcd_keys(settings, f"{PREFIX}names/")]
    # Of those in an etcd that others use, too, the ones that were built in our folder.
    specs = etcd_values(settings, f"{PREFIX}spec/")
    built = settings.state_dir / "instances"
    return [str(spec["name"]) for key, spec in specs.items() if (built / key.rpartition("/")[2]).exists() and "name" in spec]
