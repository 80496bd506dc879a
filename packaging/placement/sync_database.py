"""``sync_database.py CONFIG_FILE``: make Placement's tables in PostgreSQL or MariaDB, or bring them up to date.

MariaDB cannot undo half of a migration: a first run that is killed in it leaves tables that no second run gets past. So the
first run leaves a mark until it is through. Where the mark is found nobody was ever served from these tables: they go, and all
begins anew. A database that was complete once is never emptied, and neither is one that holds anything that is not ours.
One run at a time: another one waits for the database's own lock, which goes with its connection.
"""

from __future__ import annotations

import sys
import time

from oslo_config import cfg
from oslo_db import exception as db_exc
from placement import conf, db_api
from placement.db.sqlalchemy import migration, models
from sqlalchemy import Connection, Engine, MetaData, create_engine, inspect, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

MARK = "first_sync_unfinished"
ANSWER_SECONDS = 60
LOCK_SECONDS = 120
LOCK_NUMBER = 7285106  # of no meaning; only we use locks in this database


def main(config_file: str) -> int:
    config = cfg.ConfigOpts()
    conf.register_opts(config)
    config([], project="placement", default_config_files=[config_file])
    engine: Engine | None = None
    try:
        engine = create_engine(config.placement_database.connection)
        with _first_connection(engine) as connection:
            _lock(connection)
            if set(inspect(connection).get_table_names()) == set():
                _mark(connection)
            elif MARK in inspect(connection).get_table_names():
                _empty(connection)
            db_api.configure(config)
            migration.upgrade("head")
            _unmark(connection)
    except (SQLAlchemyError, db_exc.DBError, ModuleNotFoundError, TimeoutError) as error:
        # Its first line alone: what follows are statements, and hints that name an address.
        print(f"run-placement: the database is of no use: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    finally:
        if engine is not None:
            engine.dispose()
    return 0


def _first_connection(engine: Engine) -> Connection:
    """A database that starts beside us may need a while, and refuses or ends connections until then."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            return engine.connect()
        except DBAPIError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.5)


def _lock(connection: Connection) -> None:
    """
    Raises:
        TimeoutError: another run has it for too long.
    """
    deadline = time.monotonic() + LOCK_SECONDS
    is_postgresql = connection.dialect.name == "postgresql"
    ask = f"SELECT pg_try_advisory_lock({LOCK_NUMBER})" if is_postgresql else f"SELECT GET_LOCK('placement-{LOCK_NUMBER}', 0)"
    while not connection.execute(text(ask)).scalar():
        if time.monotonic() >= deadline:
            raise TimeoutError(f"another run-placement has been making its tables for {LOCK_SECONDS} s; end that")
        time.sleep(0.5)
    connection.commit()  # the lock is the session's; an open transaction would see old tables


def _mark(connection: Connection) -> None:
    connection.execute(text(f"CREATE TABLE {MARK} (since VARCHAR(1))"))
    connection.commit()


def _unmark(connection: Connection) -> None:
    connection.execute(text(f"DROP TABLE IF EXISTS {MARK}"))
    connection.commit()


def _empty(connection: Connection) -> None:
    """Drop what a first run that was cut off had made, and nothing else; the mark stays."""
    print("run-placement: the first run was cut off; its tables are made anew", file=sys.stderr)
    ours = {*models.BASE.metadata.tables, "alembic_version"}
    found = MetaData()
    found.reflect(connection, only=[name for name in inspect(connection).get_table_names() if name in ours])
    found.drop_all(connection)
    connection.commit()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
