"""A real openstack-placement for tests, started by ``packaging/run-placement`` as the demo does, and its fixtures.

``placement_server`` is shared by the whole session: tests make providers with uuids and names of their own, and ask within
them (``in_tree``). A test that stops, kills or freezes a server takes ``own_placement_server``.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.config import PlacementConfig
from common.placement import Inventory, Placement
from common.placement_types import CONSUMER_TYPE
from tests.support.databases import DatabaseServer
from tests.support.processes import ROOT, VENV_BIN, free_port, freeze, spawn, stop, wait_until

RUN_PLACEMENT = ROOT / "packaging" / "run-placement"
START_SECONDS = 60  # of a machine that is busy with other tests; 2 s else

EMPTY_DATABASES = ROOT / ".cache" / "placement"


def give_empty_database(data: Path) -> None:
    """Put a database with all tables and nothing in them where ``run-placement`` will look for one, unless one is there.

    Placement has made it, once for each of its versions: that takes as long as its start, and dozens of tests start one.
    """
    target = data / "placement.db"
    if target.exists():
        return
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.copyfile(_empty_database(), data / "placement.db.copied")
    (data / "placement.db.copied").rename(target)


def _empty_database() -> Path:
    """Kept in .cache; made by one process at a time."""
    kept = EMPTY_DATABASES / f"{version('openstack-placement')}.db"
    if kept.exists():
        return kept
    EMPTY_DATABASES.mkdir(parents=True, exist_ok=True)
    with (EMPTY_DATABASES / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            partial = kept.with_suffix(".partial")
            for left in EMPTY_DATABASES.glob("*.partial*"):  # by a run that was killed
                left.unlink()
            environment = {**os.environ, "OS_PLACEMENT_DATABASE__CONNECTION": f"sqlite:///{partial}"}
            made = subprocess.run(
                [VENV_BIN / "placement-manage", "db", "sync"], env=environment, check=False, capture_output=True, text=True, timeout=120
            )  # fmt: skip
            assert made.returncode == 0, made.stderr
            partial.rename(kept)
    return kept


class PlacementServer:
    """One server at *address*; stopped and started again it has the same port and the same data.

    With *database* it is several processes over a new database there; else one on SQLite.
    """

    def __init__(self, directory: Path, *, address: str = "127.0.0.1", database: DatabaseServer | None = None) -> None:
        self.directory, self.address = directory.absolute(), address
        self.directory.mkdir(parents=True, exist_ok=True)
        self.connection_file: Path | None = None
        if database is not None:
            self.connection_file = self.directory / "connection"
            self.connection_file.touch(mode=0o600)
            self.connection_file.write_text(database.new_connection())
        self.log = self.directory / "placement.log"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{self.address}:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "Placement is not running"
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it answers."""
        assert self._process is None, "Placement is running already"
        command = [RUN_PLACEMENT, self.directory / "data", str(self.port)]
        env = {"LISTEN": self.address, "WORKERS": "2"}
        if self.connection_file is not None:
            env["CONNECTION_FILE"] = str(self.connection_file)
        else:
            give_empty_database(self.directory / "data")
        self._process = spawn(command, log=self.log, env=env)
        wait_until(self._is_up, timeout_seconds=START_SECONDS, what=f"Placement answers at {self.url}", evidence=self.evidence)

    def _is_up(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"Placement ended with {self._process.returncode}\n{self.evidence()}"
        try:
            with urllib.request.urlopen(f"{self.url}/", timeout=2) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """As when the power goes: nothing is finished, nothing is told to its clients."""
        self._end(signal.SIGKILL)

    def _end(self, with_signal: int) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGCONT)
            stop(process, with_signal=with_signal)

    def restart(self) -> None:
        self.stop()
        self.start()

    def freeze(self) -> None:
        """It takes connections and answers nothing until ``thaw``."""
        assert self._process is not None, "Placement is not running"
        freeze(self._process)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def wipe(self) -> None:
        """Lose the database; only while it is stopped."""
        assert self._process is None, "stop Placement before its database is removed"
        for path in (self.directory / "data").glob("placement.db*"):
            path.unlink()

    def evidence(self) -> str:
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else "(no log)"


def client_for(
    url: str, *, etcd_prefix: str | None = None, session: Any = None, consumer_type: str = CONSUMER_TYPE, **config: Any
) -> Placement:
    """A client of a deployment of its own, unless *etcd_prefix* names one; bounded tighter than in production."""
    settings = PlacementConfig(**{"url": url, "timeout_seconds": 10, "deadline_seconds": 20, **config})
    prefix = etcd_prefix or f"/test/{uuid4()}/"
    return Placement(settings, etcd_prefix=prefix, session=session, consumer_type=consumer_type)


def make_provider(
    placement: Placement, *, vcpus: int = 8, memory_mib: int = 8192, disk_gib: int = 100, traits: tuple[str, ...] = ()
) -> UUID:
    """A provider of its own with that much of everything."""
    uuid = uuid4()
    generation = placement.ensure_provider(uuid, f"host-{uuid}").generation
    totals = {"VCPU": vcpus, "MEMORY_MB": memory_mib, "DISK_GB": disk_gib}
    inventories = {name: Inventory(total=total, max_unit=total) for name, total in totals.items()}
    generation = placement.put_inventories(uuid, generation, inventories)
    if traits:
        placement.put_traits(uuid, generation, placement.ensure_traits(traits))
    return uuid


@pytest.fixture(scope="session")
def placement_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlacementServer]:
    server = PlacementServer(tmp_path_factory.mktemp("placement"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def own_placement_server(tmp_path: Path) -> Iterator[PlacementServer]:
    """A server of this test's own, running."""
    server = PlacementServer(tmp_path / "placement")
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def placement(placement_server: PlacementServer) -> Iterator[Placement]:
    client = client_for(placement_server.url)
    yield client
    client.close()
