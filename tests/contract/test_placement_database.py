"""Placement's tables are made before it serves: whole, once, also where the run that makes them is killed or is not alone."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect

from tests.support.databases import SERVERS, DatabaseServer, running
from tests.support.processes import ROOT, VENV_BIN, free_port

SYNC = [VENV_BIN / "python", ROOT / "packaging/placement/sync_database.py"]
MARK = "first_sync_unfinished"


@pytest.fixture(scope="module", params=list(SERVERS))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatabaseServer]:
    with running(request.param, tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture
def connection(server: DatabaseServer) -> str:
    return server.new_connection()


@pytest.fixture
def config(connection: str, tmp_path: Path) -> Path:
    file = tmp_path / "placement.conf"
    file.write_text(f"[placement_database]\nconnection = {connection.replace('$', '$$')}\n")
    return file


def sync(config: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SYNC, config], check=False, capture_output=True, text=True, timeout=120)


def tables(connection: str) -> set[str]:
    engine = create_engine(connection)
    try:
        return set(inspect(engine).get_table_names())
    finally:
        engine.dispose()


def execute(connection: str, *statements: str) -> None:
    engine = create_engine(connection, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as session:
            for statement in statements:
                session.exec_driver_sql(statement)
    finally:
        engine.dispose()


def test_a_first_run_that_is_killed_is_made_good_by_the_next(config: Path, connection: str) -> None:
    for seconds in (0.8, 1.0, 1.2, 1.4, 1.6):
        with subprocess.Popen([*SYNC, config], stderr=subprocess.DEVNULL) as process:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
    answer = sync(config)
    assert answer.returncode == 0, answer.stderr
    assert {"allocations", "consumer_types", "alembic_version"} <= tables(connection)
    assert MARK not in tables(connection)


def test_half_of_the_tables_with_the_mark_go_and_those_of_others_stay(config: Path, connection: str) -> None:
    execute(
        connection, f"CREATE TABLE {MARK} (since VARCHAR(1))", "CREATE TABLE allocations (x INT)", "CREATE TABLE others (x INT)"
    )
    answer = sync(config)
    assert answer.returncode == 0, answer.stderr
    assert "made anew" in answer.stderr
    assert {"others", "resource_providers"} <= tables(connection)


def test_tables_that_were_complete_once_are_never_emptied(config: Path, connection: str) -> None:
    assert sync(config).returncode == 0
    execute(connection, "INSERT INTO traits (name) VALUES ('CUSTOM_KEPT')")
    assert sync(config).returncode == 0
    engine = create_engine(connection)
    with engine.connect() as session:
        assert session.exec_driver_sql("SELECT count(*) FROM traits WHERE name = 'CUSTOM_KEPT'").scalar() == 1
    engine.dispose()


def test_two_at_once_take_turns(config: Path, connection: str) -> None:
    both = [subprocess.Popen([*SYNC, config], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert MARK not in tables(connection)


def test_an_address_of_no_use_is_said_in_one_line_without_its_password(tmp_path: Path) -> None:
    config = tmp_path / "placement.conf"
    for address in ("nonsense:secret", f"nosuch://x:secret@127.0.0.1:{free_port()}/x"):
        config.write_text(f"[placement_database]\nconnection = {address}\n")
        answer = sync(config)
        assert answer.returncode == 1
        (line,) = answer.stderr.strip().splitlines()
        assert "of no use" in line
        assert "secret" not in line
