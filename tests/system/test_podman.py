"""``docker.sh`` by podman, in what is another thing there: networks, volumes, copies into containers; all else is docker's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.docker_sites import (
    Site,
    a_backup_is_private_and_a_restore_checks_it_first,
    a_guest_lives_through_down_and_up,
    running,
)
from tests.support.engines import Engine, Podman
from tests.support.hosts import HostNetwork

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with running(Podman(tmp_path_factory.mktemp("podman"))) as engine:
        yield engine


def test_a_guest_of_the_demo_its_spec_and_claim_are_known_after_down_and_up(
    engine: Engine, host_network: HostNetwork, tmp_path: Path, tiny_image: Path
) -> None:
    a_guest_lives_through_down_and_up(engine, host_network, tmp_path)


def test_a_backup_is_one_private_file_and_a_restore_checks_it_first(engine: Engine, tmp_path: Path) -> None:
    a_backup_is_private_and_a_restore_checks_it_first(engine, "postgresql", tmp_path)


def test_containers_are_of_those_that_podman_starts_with_the_machine(engine: Engine) -> None:
    """podman-restart.service starts those with this policy alone."""
    site = Site(engine, DATABASE="sqlite")
    try:
        site("up")
        for name in ("etcd", "placement"):
            policy = engine.run("inspect", "--format", "{{.HostConfig.RestartPolicy.Name}}", f"etcd-compute-{name}").stdout
            assert policy.strip() == "always"
    finally:
        site.down("--volumes", check=False)
