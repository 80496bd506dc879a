"""``docker.sh`` as its user runs it by docker: a real engine, databases and etcd; the demo's guest lives through it.

The images are stand-ins of the official ones (tests/system/container_images says in what). ``test_podman.py`` has podman's share.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.support.docker_sites import (
    Site,
    a_backup_is_private_and_a_restore_checks_it_first,
    a_guest_lives_through_down_and_up,
    running,
)
from tests.support.engines import Docker, Engine
from tests.support.hosts import HostNetwork
from tests.support.placement import client_for, make_provider
from tests.support.processes import ROOT, free_port, wait_until

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with running(Docker(tmp_path_factory.mktemp("docker"))) as engine:
        yield engine


@pytest.fixture
def site(engine: Engine) -> Iterator[Site]:
    site = Site(engine)
    yield site
    site.down("--volumes", check=False)


def test_a_guest_of_the_demo_its_spec_and_claim_are_known_after_down_and_up(
    engine: Engine, host_network: HostNetwork, tmp_path: Path, tiny_image: Path
) -> None:
    a_guest_lives_through_down_and_up(engine, host_network, tmp_path)


def test_up_again_changes_nothing_and_other_settings_are_taken_over(site: Site) -> None:
    site("up")
    ids = site.engine.run("ps", "-q", "--no-trunc").stdout
    site("up")
    assert site.engine.run("ps", "-q", "--no-trunc").stdout == ids
    make_provider(client_for(site.placement_url))
    other = str(free_port())
    site("up", PLACEMENT_PORT=other)
    assert (
        len(
            requests.get(f"http://127.0.0.1:{other}/resource_providers", headers={"X-Auth-Token": "admin"}, timeout=10).json()[
                "resource_providers"
            ]
        )
        == 1
    )
    assert set(site.engine.run("ps", "-q", "--no-trunc").stdout.split()) & set(ids.split()), "the others ran on"


def test_the_password_is_in_files_of_its_readers_alone(site: Site) -> None:
    site("up")
    password = site.engine.run("exec", "-u", "0", "etcd-compute-database", "cat", "/secrets/password").stdout
    assert len(password) == 48
    for name in ("etcd", "database", "placement"):
        container = f"etcd-compute-{name}"
        assert password not in site.engine.run("inspect", container).stdout
        assert password not in site("logs", name).stdout
    for process in Path("/proc").glob("[0-9]*"):
        for part in ("cmdline", "environ"):
            try:
                assert password.encode() not in (process / part).read_bytes(), process
            except OSError:
                continue
    listed = site.engine.run(
        "exec", "-u", "0", "etcd-compute-database", "stat", "-c", "%a", "/secrets/password", "/secrets/connection"
    ).stdout
    assert listed.split() == ["400", "400"]


def test_nobody_on_this_machine_gets_into_the_database_without_the_password(site: Site) -> None:
    site("up", DATABASE="postgresql")
    login = ("psql", "-w", "-h", "127.0.0.1", "-p", site.settings["DATABASE_PORT"], "-U", "placement", "-c", "SELECT 1")
    answer = site.engine.run("exec", "etcd-compute-database", *login, check=False)
    assert answer.returncode != 0
    assert "no password supplied" in answer.stderr


@pytest.mark.parametrize("database", ["postgresql", "mariadb", "sqlite"])
def test_a_backup_is_one_private_file_and_a_restore_checks_it_first(engine: Engine, database: str, tmp_path: Path) -> None:
    a_backup_is_private_and_a_restore_checks_it_first(engine, database, tmp_path)


def test_another_database_would_be_empty_and_is_refused(site: Site) -> None:
    site("up")
    assert "set DATABASE=postgresql" in site.refusal("up", DATABASE="mariadb")
    assert "is none of" in site.refusal("up", DATABASE="oracle")
    assert "LISTEN_ADDRESS=0.0.0.0" in site.refusal("up", LISTEN_ADDRESS="0.0.0.0")
    assert "PLACEMENT_WORKERS=many" in site.refusal("up", PLACEMENT_WORKERS="many")


def test_a_port_that_is_taken_is_said_by_who_wanted_it(site: Site) -> None:
    other = subprocess.Popen(
        ["python3", "-m", "http.server", str(site.placement_port), "--bind", "127.0.0.1"], stderr=subprocess.DEVNULL
    )
    try:
        assert "etcd-compute-placement does not answer" in site("up", check=False, UP_SECONDS="20").stderr
    finally:
        other.kill()
        other.wait()


def test_a_first_start_that_was_cut_off_is_begun_anew(site: Site) -> None:
    """The images of databases take whatever they find for a whole database, and would never let Placement in."""
    command = [ROOT / "docker.sh"]
    up = subprocess.Popen(
        command, env={**site.engine.environment, **site.settings}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        inside = ["exec", "etcd-compute-database", "test", "-s", "/var/lib/postgresql/data/PG_VERSION"]
        begun = lambda: site.engine.run(*inside, check=False).returncode == 0  # noqa: E731
        wait_until(begun, timeout_seconds=120, what="the database's files are being made")
        site.engine.run("kill", "etcd-compute-database")
    finally:
        up.kill()
        up.communicate(timeout=30)
    site.down()
    answer = site("up")
    assert "first start of the database was cut off" in answer.stderr
    provider = make_provider(client_for(site.placement_url))

    site.down()
    assert "cut off" not in site("up").stderr, "once whole it is never emptied"
    assert client_for(site.placement_url).provider(provider) is not None


BAD_SETTINGS = [
    ("LISTEN_ADDRESS", "10.0.0.256", "no IPv4 address"), ("ETCD_PORT", "2380", "is ETCD_PORT, too"), ("PLACEMENT_PORT", "80800", "no port"),
    ("ETCD_VOLUME", "/srv/etcd", "no name of a volume"), ("SECRETS_VOLUME", "etcd-compute-etcd", "is ETCD_VOLUME, too"),
    ("ETCD_COMPACTION", "often", "no time such as"), ("ETCD_QUOTA", "4G", "no positive number"), ("DATABASE", "oracle", "is none of"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "said"), BAD_SETTINGS)
def test_a_setting_that_cannot_work_is_refused_before_anything_is_done(name: str, value: str, said: str) -> None:
    environment = {**os.environ, name: value, "ENGINE": "no-engine-at-all"}
    answer = subprocess.run([ROOT / "docker.sh"], env=environment, check=False, capture_output=True, text=True, timeout=30)
    assert answer.returncode == 2
    (line,) = answer.stderr.splitlines()
    assert said in line
    assert "see dockerenv" in line


def test_an_engine_that_is_named_and_not_there_is_named() -> None:
    environment = {**os.environ, "ENGINE": "no-engine-at-all"}
    answer = subprocess.run([ROOT / "docker.sh"], env=environment, check=False, capture_output=True, text=True, timeout=30)
    assert answer.returncode == 1
    assert "ENGINE is no-engine-at-all" in answer.stderr


def test_without_an_engine_it_names_the_demo(tmp_path: Path) -> None:
    for program in ("bash", "sed", "dirname", "sha256sum", "cut", "tail"):
        (tmp_path / program).symlink_to(shutil.which(program) or "")
    answer = subprocess.run(
        [tmp_path / "bash", ROOT / "docker.sh"], env={**os.environ, "PATH": str(tmp_path), "ENGINE": ""}, check=False, capture_output=True,
        text=True, timeout=30,
    )  # fmt: skip
    assert answer.returncode == 1
    (line,) = answer.stderr.splitlines()
    assert "docker nor podman" in line
    assert "demo.sh" in line
