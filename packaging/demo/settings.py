"""Where the demo keeps things and which ports it uses; decided once from the environment, remembered for status and down."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / ".venv" / "bin"
CACHE = ROOT / ".cache"

STATE_DIR = Path("/var/lib/etcd-compute-demo")
RUN_DIR = Path("/run/etcd-compute-demo")

# Marks a state directory as the demo's: only such a one is ever removed.
MARK_FILE = ".etcd-compute-demo"

METADATA_ADDRESS = "169.254.169.254"
NETWORK = "default"
LIBVIRT_URI = "qemu:///system"
REQUEST = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:256"


class DemoError(Exception):
    """The demo cannot go on; the text is one line that says what is wrong and what to do."""


@dataclass(frozen=True)
class Settings:
    """The demo's places and ports.

    Args:
        services_urls: of an etcd and a Placement that are there already and are not the demo's; empty: it starts its own.
    """

    etcd_port: int = 2379
    etcd_peer_port: int = 2380
    placement_port: int = 8778
    state_dir: Path = STATE_DIR
    run_dir: Path = RUN_DIR
    services_urls: tuple[str, str] | tuple[()] = ()

    @property
    def etcd_url(self) -> str:
        return self.services_urls[0] if self.services_urls else f"http://127.0.0.1:{self.etcd_port}"

    @property
    def placement_url(self) -> str:
        return self.services_urls[1] if self.services_urls else f"http://127.0.0.1:{self.placement_port}"

    @property
    def compute_yaml(self) -> Path:
        return self.state_dir / "compute.yaml"

    @property
    def schedule_yaml(self) -> Path:
        return self.state_dir / "schedule.yaml"

    @property
    def image(self) -> Path:
        return self.state_dir / "tiny.qcow2"

    @property
    def ssh_key(self) -> Path:
        return self.state_dir / "ssh_key"

    @property
    def known_hosts(self) -> Path:
        return self.state_dir / "known_hosts"

    @property
    def logs(self) -> Path:
        return self.state_dir / "log"

    @property
    def owns_state_dir(self) -> bool:
        """Whether the state directory is the demo's to use and to remove: a demo made it, or nothing is in it."""
        return (self.state_dir / MARK_FILE).exists() or not any(self.state_dir.iterdir())

    @property
    def facts(self) -> Path:
        """What up found or chose, for the runs after it."""
        return self.run_dir / "demo.json"


PORTS = {"etcd_port": "DEMO_ETCD_PORT", "etcd_peer_port": "DEMO_ETCD_PEER_PORT", "placement_port": "DEMO_PLACEMENT_PORT"}

URLS = ("DEMO_ETCD_URL", "DEMO_PLACEMENT_URL")


def from_environment(environment: Mapping[str, str] = os.environ, settings: Settings | None = None) -> Settings:
    """The settings that the user asks for; what is not asked for is as in the demo that is up, else the default.

    Raises:
        DemoError: a port is no port.
    """
    settings = settings or Settings()
    settings = replace(settings, **_remembered_ports(settings), state_dir=_state_dir(environment, settings))  # type: ignore[arg-type]
    chosen = {field: _port(variable, environment[variable]) for field, variable in PORTS.items() if environment.get(variable)}
    if "etcd_port" in chosen and "etcd_peer_port" not in chosen:
        chosen["etcd_peer_port"] = chosen["etcd_port"] + 1
    settings = replace(settings, services_urls=_urls(environment, settings), **chosen)  # type: ignore[arg-type]
    ports = [settings.etcd_port, settings.etcd_peer_port, settings.placement_port]
    if len(set(ports)) < len(ports):
        raise DemoError(f"the ports of etcd, its peers and Placement must differ, not {ports}: see {', '.join(PORTS.values())}")
    return settings


def _urls(environment: Mapping[str, str], settings: Settings) -> tuple[str, str] | tuple[()]:
    """Where etcd and Placement are that are not the demo's, as the demo that is up was told, else as the user says."""
    chosen = tuple(environment.get(variable, "").rstrip("/") for variable in URLS)
    if any(chosen) and not all(url.startswith("http://") for url in chosen):
        raise DemoError(f"{' and '.join(URLS)} go together, and are addresses such as http://10.0.0.1:2379, not {chosen}")
    facts = read_facts(settings)
    remembered = tuple(urls) if isinstance(urls := facts.get("services_urls"), list) else ()
    if not facts or not any(chosen):
        return chosen if all(chosen) else remembered  # type: ignore[return-value]
    if chosen != remembered:
        used = " and ".join(map(str, remembered)) or "an etcd and a Placement of its own"
        raise DemoError(f"the demo that is up uses {used}: ./demo.sh down first, then choose others")
    return chosen  # type: ignore[return-value]


def _state_dir(environment: Mapping[str, str], settings: Settings) -> Path:
    """Where the demo that is up keeps its files, else where the user wants them."""
    chosen = environment.get("DEMO_STATE_DIR")
    remembered = read_facts(settings).get("state_dir")
    if chosen and not Path(chosen).is_absolute():
        raise DemoError(f"DEMO_STATE_DIR={chosen} is no absolute path")
    if isinstance(remembered, str):
        if chosen and chosen != remembered:
            raise DemoError(
                f"the demo that is up keeps its files in {remembered}: ./demo.sh down first, then choose another folder"
            )
        return Path(remembered)
    return Path(chosen) if chosen else settings.state_dir


def _port(variable: str, text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65534:
        raise DemoError(f"{variable}={text} is no port: give a number from 1 to 65534")
    return int(text)


def _remembered_ports(settings: Settings) -> dict[str, int]:
    ports = read_facts(settings).get("ports")
    return {field: ports[field] for field in PORTS if isinstance(ports.get(field), int)} if isinstance(ports, dict) else {}


def read_facts(settings: Settings) -> dict[str, object]:
    """What was remembered; empty where nothing was."""
    try:
        facts = json.loads(settings.facts.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def remember(settings: Settings, **facts: object) -> None:
    """Keep *facts*, beside those remembered before, until down."""
    ports = {field: asdict(settings)[field] for field in PORTS}
    own = {"ports": ports, "state_dir": str(settings.state_dir), "services_urls": list(settings.services_urls)}
    write_file(settings.facts, json.dumps({**read_facts(settings), **own, **facts}, indent=1) + "\n")


def write_file(path: Path, text: str, mode: int = 0o644) -> None:
    """Put *text* into *path* by rename."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    partial.touch(mode=mode)
    with partial.open("w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
