"""Leases for writers on several machines: two small tables in a database that all of them reach.

All decisions are made by one clock, the database's, so those of the machines may be wrong. A transaction begins by
counting the repository's token up, which every database serialises; what follows in it is alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    delete,
    event,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError, SQLAlchemyError

from fs.errors import RefusedError, UnreachableError
from fs.publish.leases import Lease, conflicts, lost, refuse

_METADATA = MetaData()

_REPOSITORIES = Table(
    "unpackd_lease_tokens",
    _METADATA,
    Column("repository", String(255), primary_key=True),
    Column("last_token", BigInteger, nullable=False),
)

_LEASES = Table(
    "unpackd_leases",
    _METADATA,
    Column("repository", String(255), primary_key=True),
    Column("token", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("path", LargeBinary, nullable=False),
    Column("owner", String(1000), nullable=False),
    Column("expires_unix_s", Float(53), nullable=False),
)

_NOW = {
    "sqlite": "SELECT (julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "SELECT extract(epoch FROM clock_timestamp())",
    "mysql": "SELECT unix_timestamp(now(6))",
    "mariadb": "SELECT unix_timestamp(now(6))",
}


class SqlLeases:
    """A LeaseKeeper in a database."""

    def __init__(self, engine: Engine) -> None:
        """Use *engine*; the tables are made where they are missing.

        Raises:
            RefusedError: how to ask that kind of database for the time is not known.
            UnreachableError: it does not answer.
        """
        if engine.dialect.name not in _NOW:
            raise RefusedError(f"leases cannot be kept in {engine.dialect.name}: {', '.join(sorted(_NOW))} can")
        self._engine = engine
        self._now = text(_NOW[engine.dialect.name])
        with self._errors():
            _METADATA.create_all(engine)

    @classmethod
    def open(cls, url: str) -> "SqlLeases":
        """A keeper in the database at SQLAlchemy *url*. Raises as the constructor does, RefusedError."""
        try:
            engine = create_engine(url, pool_pre_ping=True)
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise RefusedError(f"leases cannot be kept there: {error}") from error
        if engine.dialect.name == "sqlite":
            # the driver would begin a transaction only at the first change, after others have read the same
            event.listen(engine, "connect", _leave_transactions_to_us)
            event.listen(engine, "begin", _begin_immediately)
        return cls(engine)

    def acquire(self, repository: str, path: bytes, owner: str, lifetime_s: float) -> Lease:
        """See LeaseKeeper.acquire."""
        with self._alone(repository) as (connection, token, now):
            for held in self._held(connection, repository):
                if conflicts(held.path, path):
                    raise refuse(path, held)
            lease = Lease(repository, path, owner[:1000], token, now + lifetime_s)
            connection.execute(
                insert(_LEASES).values(
                    repository=repository,
                    token=token,
                    path=path,
                    owner=lease.owner,
                    expires_unix_s=lease.expires_unix_s,
                )
            )
            return lease

    def renew(self, lease: Lease, lifetime_s: float) -> Lease:
        """See LeaseKeeper.renew."""
        with self._alone(lease.repository) as (connection, _, now):
            expires = now + lifetime_s
            renewed = connection.execute(
                update(_LEASES)
                .where(_LEASES.c.repository == lease.repository, _LEASES.c.token == lease.token)
                .values(expires_unix_s=expires)
            )
            is_there = renewed.rowcount == 1
        if not is_there:
            raise lost(lease)
        return replace(lease, expires_unix_s=expires)

    def release(self, lease: Lease) -> None:
        """See LeaseKeeper.release."""
        with self._errors(), self._engine.begin() as connection:
            connection.execute(
                delete(_LEASES).where(_LEASES.c.repository == lease.repository, _LEASES.c.token == lease.token)
            )

    def leases(self, repository: str) -> list[Lease]:
        """See LeaseKeeper.leases."""
        with self._alone(repository) as (connection, _, _):
            return self._held(connection, repository)

    @contextmanager
    def _alone(self, repository: str) -> Iterator[tuple[Connection, int, float]]:
        """A transaction that no other one of this repository overlaps: its new token, and the time."""
        with self._errors():
            self._know(repository)
            with self._engine.begin() as connection:
                connection.execute(
                    update(_REPOSITORIES)
                    .where(_REPOSITORIES.c.repository == repository)
                    .values(last_token=_REPOSITORIES.c.last_token + 1)
                )
                query = select(_REPOSITORIES.c.last_token).where(_REPOSITORIES.c.repository == repository)
                token = int(connection.execute(query).scalar_one())
                now = float(connection.execute(self._now).scalar_one())
                connection.execute(
                    delete(_LEASES).where(_LEASES.c.repository == repository, _LEASES.c.expires_unix_s <= now)
                )
                yield connection, token, now

    def _know(self, repository: str) -> None:
        """Make the row of the repository that transactions queue up at."""
        with self._engine.connect() as connection:
            query = select(_REPOSITORIES.c.last_token).where(_REPOSITORIES.c.repository == repository)
            if connection.execute(query).first() is not None:
                return
        try:
            with self._engine.begin() as connection:
                connection.execute(insert(_REPOSITORIES).values(repository=repository, last_token=0))
        except IntegrityError:
            return  # somebody else was quicker

    @staticmethod
    def _held(connection: Connection, repository: str) -> list[Lease]:
        columns = (_LEASES.c.token, _LEASES.c.path, _LEASES.c.owner, _LEASES.c.expires_unix_s)
        query = select(*columns).where(_LEASES.c.repository == repository).order_by(_LEASES.c.token)
        return [
            Lease(repository, bytes(path), owner, int(token), float(expires))
            for token, path, owner, expires in connection.execute(query)
        ]

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (DBAPIError, SQLAlchemyError) as error:
            shown = self._engine.url.render_as_string(hide_password=True)
            raise UnreachableError(f"the leases in {shown} cannot be used: {error}") from error


def _leave_transactions_to_us(connection: object, _record: object) -> None:
    connection.isolation_level = None  # type: ignore[attr-defined]  # the driver's connection
    connection.execute("PRAGMA busy_timeout = 30000")  # type: ignore[attr-defined]


def _begin_immediately(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
