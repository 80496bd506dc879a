"""The daemons as units of Type=notify with a watchdog: these tests are the service manager."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.deployment import Deployment, Process
from tests.support.processes import VENV_BIN, free_port, freeze, spawn, stop, wait_until
from tests.support.service_manager import ServiceManager

WATCHDOG_SECONDS = 30.0  # with the deployment's heartbeat every 5 s


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    manager = ServiceManager(str(tmp_path / "notify"), WATCHDOG_SECONDS)
    yield manager
    manager.close()


def start(deployment: Deployment, manager: ServiceManager) -> Process:
    command = [VENV_BIN / "ecompute", "--config", deployment.compute_file]
    deployment.ecompute = spawn(command, log=deployment.directory / "ecompute.log", env=manager.environment)
    return deployment.ecompute


def hears(manager: ServiceManager, start: str, deployment: Deployment, timeout_seconds: float = 30) -> None:
    wait_until(
        lambda: manager.has_heard(start),
        timeout_seconds=timeout_seconds,
        what=f"the manager is told {start}",
        evidence=lambda: f"{manager.lines}\n{deployment.evidence()}",
    )


def test_ecompute_is_up_with_its_host_key_alive_and_stops_in_order(local_deployment: Deployment, manager: ServiceManager):
    assert local_deployment.stop_ecompute() == 0
    process = start(local_deployment, manager)
    hears(manager, "READY=1", local_deployment)
    hosts = [key for key in local_deployment.etcd_keys() if "/hosts/" in key]
    assert len(hosts) == 1, "up means that the host key is there"
    hears(manager, "STATUS=Ready", local_deployment)
    hears(manager, "WATCHDOG=1", local_deployment)
    freeze(process)  # type: ignore[arg-type]
    manager.heard()
    time.sleep(WATCHDOG_SECONDS / 3)  # nothing comes: there is no condition to wait for
    assert manager.heard() == [], "a process that hangs gives no sign of life"
    process.send_signal(signal.SIGCONT)
    manager.lines.clear()
    hears(manager, "WATCHDOG=1", local_deployment)
    assert local_deployment.stop_ecompute() == 0
    hears(manager, "STOPPING=1", local_deployment)


def test_ecompute_is_up_without_etcd_and_says_what_it_waits_for(local_deployment: Deployment, manager: ServiceManager):
    assert local_deployment.stop_ecompute() == 0
    local_deployment.kill_etcd()
    start(local_deployment, manager)
    hears(manager, "READY=1", local_deployment)
    hears(manager, "STATUS=waiting for etcd: ", local_deployment)
    hears(manager, "WATCHDOG=1", local_deployment)
    local_deployment.start_etcd()
    hears(manager, "STATUS=Ready", local_deployment, timeout_seconds=60)
    assert manager.lines.count("READY=1") == 1


def test_md_server_is_up_once_it_serves_and_alive_though_nobody_asks(tmp_path: Path):
    manager = ServiceManager(f"@etcd-compute-test-md-{os.getpid()}", 1.5)
    config = tmp_path / "compute.yaml"
    paths = {"state_dir": str(tmp_path / "state"), "run_dir": str(tmp_path / "run")}
    config.write_text(yaml.safe_dump({"paths": paths, "metadata": {"mode": "external"}}))
    log = tmp_path / "md-server.log"
    command = [VENV_BIN / "md-server", "--config", config, "--listen", f"127.0.0.1:{free_port()}"]
    process = spawn(command, log=log, env=manager.environment)

    def hears(start: str) -> None:
        wait_until(lambda: manager.has_heard(start), timeout_seconds=20, what=start, evidence=log.read_text)

    try:
        hears("READY=1")
        hears("STATUS=serving guests at 127.0.0.1:")
        for _ in range(3):
            manager.lines.clear()
            hears("WATCHDOG=1")
        freeze(process)
        manager.heard()
        time.sleep(1.5)  # nothing comes: there is no condition to wait for
        assert manager.heard() == []
        process.send_signal(signal.SIGCONT)
        assert stop(process) == 0
        hears("STOPPING=1")
    finally:
        stop(process, with_signal=signal.SIGKILL)
        manager.close()


@pytest.mark.parametrize(("mode", "code"), [("external", 0), ("managed", 1), ("off", 1)])
def test_a_unit_of_its_own_is_wanted_where_the_mode_is_external(tmp_path: Path, mode: str, code: int):
    config = tmp_path / "compute.yaml"
    config.write_text(yaml.safe_dump({"metadata": {"mode": mode}}))
    process = spawn([VENV_BIN / "md-server", "--config", config, "--check-external"], log=tmp_path / "log")
    assert process.wait(20) == code
    assert f"metadata.mode is {mode}" in (tmp_path / "log").read_text()
