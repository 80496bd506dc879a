"""Real PostgreSQL and MariaDB servers for tests, on loopback; each test that wants one gets a database of its own in it.

Their programs are the host's where they are installed, else those that setup-host.sh unpacked below .cache (the section [servers]
of packaging/debian-packages). Everything dies with the test.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError

from tests.support.processes import ROOT, free_port, spawn, stop, wait_until

UNPACKED = ROOT / ".cache" / "servers"
LIBRARIES = UNPACKED / "usr/lib/x86_64-linux-gnu"
START_SECONDS = 60
NOBODY = pwd.getpwnam("nobody")
PASSWORD = "p%$w"  # what an address and a configuration file must not take for their own


def program(name: str, *folders: str) -> Path:
    """*name* from PATH or *folders* of the host, else from the same folders of what was unpacked."""
    for root in (Path("/"), UNPACKED):
        for folder in (*folders, "usr/bin", "usr/sbin"):
            for found in sorted(root.glob(f"{folder}/{name}"), reverse=True):
                return found
    raise AssertionError(f"there is no {name}: packaging/setup-host.sh --extra test test")


def environment() -> dict[str, str]:
    """For programs that were unpacked: where their libraries are."""
    return {"LD_LIBRARY_PATH": str(LIBRARIES), "LC_ALL": "C.UTF-8"}


class DatabaseServer(Protocol):
    def start(self) -> None: ...

    def stop(self) -> None: ...

    def kill(self) -> None: ...

    def new_connection(self) -> str:
        """The SQLAlchemy address of a new, empty database."""
        ...


class _Server:
    """What both have in common: a process in *directory*, and an administrator who makes databases."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.data, self.log = self.directory / "data", self.directory / "server.log"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def folders(self) -> tuple[Path, ...]:
        """What is to go with it."""
        return (self.data,)

    admin: str  # the SQLAlchemy address of its administrator

    def _command(self) -> Sequence[str | Path]:
        raise NotImplementedError

    def start(self) -> None:
        self._process = spawn(self._command(), log=self.log, env=environment())
        wait_until(self._answers, timeout_seconds=START_SECONDS, what=f"{self.admin} answers", evidence=self.evidence)

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, f"it ended\n{self.evidence()}"
        try:
            self._execute("SELECT 1")
        except DBAPIError:
            return False
        return True

    def _execute(self, *statements: str) -> None:
        engine = create_engine(self.admin, isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                for statement in statements:
                    connection.exec_driver_sql(statement.replace("%", "%%"))
        finally:
            engine.dispose()

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, with_signal: int) -> None:
        process, self._process = self._process, None
        if process is not None:
            stop(process, with_signal=with_signal, timeout_seconds=20)

    def evidence(self) -> str:
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else "(no log)"

    def _initialise(self, *command: str | Path) -> None:
        made = subprocess.run(
            [str(word) for word in command], check=False, capture_output=True, text=True, timeout=120,
            env={**os.environ, **environment()}, cwd="/",
        )  # fmt: skip
        assert made.returncode == 0, f"{command}: {made.stdout}{made.stderr}"


class PostgresServer(_Server):
    """PostgreSQL, which refuses to be run by root: it is nobody's, in a folder outside of pytest's own, which are root's alone.

    So may the checkout be, with what was unpacked in it: nobody sees that at another place, in a mount namespace of its own.
    """

    FOLDER = "usr/lib/postgresql/*/bin"
    AS_NOBODY = (
        'mount --bind "$1" "$2" && shift 2 && '
        'exec setpriv --reuid=nobody --regid=nogroup --clear-groups --pdeathsig QUIT -- env "LD_LIBRARY_PATH=$@"'
    )

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.as_root, self.programs = os.geteuid() == 0, self.directory
        self.admin = f"postgresql+psycopg2://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        if not self.data.exists():
            self.directory.mkdir(parents=True, exist_ok=True)
            self.data = Path(tempfile.mkdtemp(prefix="etcd-compute-test-postgresql-"))
            if self.as_root:
                os.chown(self.data, NOBODY.pw_uid, NOBODY.pw_gid)
                self.programs = Path(tempfile.mkdtemp(prefix="etcd-compute-test-programs-"))
                self.programs.chmod(0o755)
            self._initialise(*self._as_nobody(program("initdb", self.FOLDER), "-D", self.data, "-U", "postgres", "--no-sync"))
            rules = "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
            (self.data / "pg_hba.conf").write_text(rules)
        super().start()

    def _command(self) -> Sequence[str | Path]:
        settings = {
            "port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off",
            "shared_buffers": "32MB", "jit": "off",
        }  # fmt: skip
        command: list[str | Path] = [program("postgres", self.FOLDER), "-D", self.data]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        return self._as_nobody(*command)

    @property
    def folders(self) -> tuple[Path, ...]:
        return (self.data, self.programs) if self.as_root else (self.data,)

    def _as_nobody(self, *command: str | Path) -> Sequence[str | Path]:
        """*command*; as root that of nobody. setpriv chooses the signal of its parent's death once it has changed the user."""
        if not self.as_root:
            return command
        UNPACKED.mkdir(parents=True, exist_ok=True)  # where they are installed it is not there
        moved = [str(word).replace(str(UNPACKED), str(self.programs)) for word in (LIBRARIES, *command)]
        return ["unshare", "--mount", "bash", "-c", self.AS_NOBODY, "bash", UNPACKED, self.programs, *moved]

    def new_connection(self) -> str:
        name = f"placement_{uuid4().hex[:8]}"
        self._execute(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'", f"CREATE DATABASE {name} OWNER {name}")
        return f"postgresql+psycopg2://{name}:p%25$w@127.0.0.1:{self.port}/{name}"


class MariadbServer(_Server):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.admin = f"mysql+pymysql://root@127.0.0.1:{self.port}/mysql"

    def start(self) -> None:
        if not self.data.exists():
            self.data.mkdir(parents=True)
            self._initialise(
                program("mariadb-install-db"), "--no-defaults", f"--basedir={self._base()}", f"--datadir={self.data}",
                f"--user={pwd.getpwuid(os.geteuid()).pw_name}", "--auth-root-authentication-method=normal", "--skip-test-db",
            )  # fmt: skip
        super().start()

    def _base(self) -> Path:
        return program("mariadbd").parent.parent

    def _command(self) -> Sequence[str | Path]:
        return [
            program("mariadbd"), "--no-defaults", f"--basedir={self._base()}", f"--datadir={self.data}",
            f"--plugin-dir={self._base()}/lib/mysql/plugin", f"--user={pwd.getpwuid(os.geteuid()).pw_name}",
            "--bind-address=127.0.0.1", f"--port={self.port}", f"--socket={self.data}/socket", f"--pid-file={self.data}/pid",
            "--innodb-flush-log-at-trx-commit=2", "--innodb-buffer-pool-size=32M",
        ]  # fmt: skip

    def new_connection(self) -> str:
        name = f"placement_{uuid4().hex[:8]}"
        self._execute(
            f"CREATE DATABASE {name} CHARACTER SET utf8mb4",
            f"CREATE USER '{name}'@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'", f"GRANT ALL ON {name}.* TO '{name}'@'127.0.0.1'",
        )  # fmt: skip
        return f"mysql+pymysql://{name}:p%25$w@127.0.0.1:{self.port}/{name}?charset=utf8mb4"


SERVERS = {"postgresql": PostgresServer, "mariadb": MariadbServer}
DATABASES = ("sqlite", *SERVERS)


@contextlib.contextmanager
def running(kind: str, directory: Path) -> Iterator[DatabaseServer]:
    """A server of *kind*; it is gone afterwards, with what it holds."""
    server = SERVERS[kind](directory)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        for folder in server.folders:
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module", params=DATABASES)
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatabaseServer | None]:
    """A database server for Placement, one after the other; None for SQLite, which needs none."""
    if request.param not in SERVERS:
        yield None
        return
    with running(request.param, tmp_path_factory.mktemp(request.param)) as server:
        yield server
