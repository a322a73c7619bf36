"""The database of the farm: one SQLite file, or PostgreSQL when several machines share it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from converter.errors import JobStoreError
from converter.farm_schema import SCHEMA_VERSION, facts, metadata

_BUSY_TIMEOUT_S = 20.0
_CREATION_LOCK = 0x756E7061636B64  # "unpackd"
_READ_ONLY = "unpackd_read_only"


class FarmDatabase:
    """Connections and transactions. Threads may share it; a process that forks must not."""

    def __init__(self, url: str) -> None:
        """Open the database at *url*, an SQLAlchemy URL, and create the tables that are missing.

        Raises:
            JobStoreError: it cannot be opened, or belongs to another version.
        """
        try:
            if url.startswith("sqlite"):
                self._engine = sa.create_engine(url, connect_args={"timeout": _BUSY_TIMEOUT_S})
                _prepare_sqlite(self._engine)
            else:
                self._engine = sa.create_engine(url, pool_pre_ping=True)
            self._reading = self._engine.execution_options(**{_READ_ONLY: True})
            self._create()
        except (sa.exc.SQLAlchemyError, ImportError) as error:
            shown = url.partition("://")[0]
            raise JobStoreError(f"the job database ({shown}) cannot be opened: {str(error).splitlines()[0]}") from error

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """One consistent look."""
        with self._reading.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction: all or nothing. SQLite's lock is taken at once, so that nobody fails half-way."""
        with self._engine.begin() as connection:
            yield connection

    def insert(self, table: sa.Table) -> "sqlite.Insert | postgresql.Insert":
        """An INSERT that knows ``on_conflict_do_…``, in the dialect of this database."""
        return sqlite.insert(table) if self._engine.dialect.name == "sqlite" else postgresql.insert(table)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _create(self) -> None:
        with self.write() as connection:
            if self._engine.dialect.name == "postgresql":  # all processes of a farm may start at the same moment
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _CREATION_LOCK})
            metadata.create_all(connection)
            version = str(SCHEMA_VERSION)
            connection.execute(
                self.insert(facts).values(name="schema", value=version).on_conflict_do_nothing(index_elements=["name"])
            )
            found = connection.execute(sa.select(facts.c.value).where(facts.c.name == "schema")).scalar_one()
        if found != version:
            raise JobStoreError(f"the job database has schema {found}, this program reads {version}")


def _prepare_sqlite(engine: sa.Engine) -> None:
    """Write-ahead log, foreign keys, and transactions that are begun by us instead of the driver."""

    @sa.event.listens_for(engine, "connect")
    def connected(connection: Any, _record: Any) -> None:  # noqa: ANN401  # the driver's own objects
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")

    @sa.event.listens_for(engine, "begin")
    def begun(connection: sa.Connection) -> None:
        reads = connection.get_execution_options().get(_READ_ONLY)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
